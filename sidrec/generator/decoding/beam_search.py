"""Trie-constrained beam search of fixed depth, in log space, on the device."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.decoding.item_filters import AllItemsBut, AllowedItems, allowed_in_children
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import RankedItems

_LOWEST = float("-inf")
LEAST_MASS = 1e-30  # least mass of a child with items, where rounding leaves nothing
NO_ITEM = -1e30  # finite, so that an ended beam stays free of NaN
_BITS_OF_NO_ITEM = torch.tensor(NO_ITEM).view(torch.int32).item()


@runtime_checkable
class Step(Protocol):
    """Decoding step of a model, with its own cache."""

    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return log-probabilities, in nats, of the codes of ``level`` after each beam.

        The search takes them as given; the model decides over which codes they sum to one.

        Args:
            level: 0 for the first code, then one more at each call.
            parent: Beam of the previous call that each beam extends. At level 0 there is one beam
                per request and this is 0.
            codes: Code of level ``level - 1`` that each beam appended; meaningless at level 0. Rows
                of ended beams hold some code; the search ignores their result.
        """
        ...


class Decoded(NamedTuple):
    """Result of one search.

    Attributes:
        ranked: Items, best first. Those of one Semantic ID take successive ranks.
        keys: Packed distinct Semantic IDs, best first; -1 on padding.
        log_probabilities: Score of each Semantic ID, in nats; -inf on padding.
    """

    ranked: RankedItems
    keys: Int[Tensor, "request beam"]
    log_probabilities: Float[Tensor, "request beam"]


class Beams(NamedTuple):
    """Live beams in the order of their keys; an ended beam has an empty range."""

    lo: Int[Tensor, "request beam"]
    hi: Int[Tensor, "request beam"]
    scores: Float[Tensor, "request beam"]

    @classmethod
    def at_root(cls, trie: SemanticIdTrie, num_requests: int) -> "Beams":
        """Return one beam per request, whose range is the whole catalogue."""
        start = trie.keys.new_zeros((num_requests, 1), dtype=torch.int32)
        return cls(start, start + trie.num_items, start.float())


class Chosen(NamedTuple):
    """Candidates that become beams: their parent beam, code and score."""

    parent: Int[Tensor, "request chosen"]
    codes: Int[Tensor, "request chosen"]
    scores: Float[Tensor, "request chosen"]


Chooser: TypeAlias = Callable[[Float[Tensor, "request beam code"], int], Chosen]


@torch.no_grad()
def beam_search(
    step: Step,
    trie: SemanticIdTrie,
    *,
    num_beams: int,
    top_k: int,
    excluded: Int[Tensor, "request excluded"],
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> Decoded:
    """Find the most probable items of the catalogue, except those that a request excludes.

    See :func:`search_allowed`.

    Args:
        step: Decoding step of the model, set to the batch's sources.
        trie: Trie of the catalogue, on the model's device.
        num_beams: Width of the search.
        top_k: Length of the lists, at most ``num_beams``.
        excluded: item_index that each request must not get; -1 pads, and zero columns are valid.
        mass_before: See :func:`search_allowed`.
    """
    allowed = AllItemsBut.of(trie, excluded)
    return search_allowed(
        step,
        trie,
        allowed,
        num_requests=len(excluded),
        num_beams=num_beams,
        top_k=top_k,
        mass_before=mass_before,
    )


@torch.no_grad()
def search_allowed(
    step: Step,
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    num_requests: int,
    num_beams: int,
    top_k: int,
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> Decoded:
    """Find the most probable items among the allowed ones.

    The search follows a prefix only while it holds an allowed item, so no beam is lost. It ends
    with ``min(num_beams, allowed Semantic IDs)`` distinct Semantic IDs, and its lists are ``top_k``
    long whenever that many items are allowed. A width of at least the number of Semantic IDs scores
    the whole catalogue exactly. Ties go to the lower Semantic ID.

    Args:
        step: Decoding step of the model, set to the batch's sources.
        trie: Trie of the catalogue, on the model's device.
        allowed: Items that each request may get.
        num_requests: Number of requests in the batch.
        num_beams: Width of the search.
        top_k: Length of the lists, at most ``num_beams``.
        mass_before: Prior mass of the items before every position of the trie, per request. With
            it, the step's result counts as logits over the children in the catalogue, see
            :func:`over_children`. None takes the result as it is. For models trained this way.

    Raises:
        ConfigError: If ``num_beams`` is smaller than ``top_k``, or ``top_k`` below 1.
    """
    check_top_k(num_beams=num_beams, top_k=top_k)
    beams = search_beams(
        step,
        trie,
        allowed,
        num_requests=num_requests,
        num_beams=num_beams,
        mass_before=mass_before,
        choose=best_children,
    )
    return expand(beams, trie, allowed, top_k)


def check_top_k(*, num_beams: int, top_k: int) -> None:
    """Check that a search is wide enough for its lists.

    Raises:
        ConfigError: If ``top_k`` is below 1 or above ``num_beams``.
    """
    if not 1 <= top_k <= num_beams:
        raise ConfigError(
            f"num_beams ({num_beams}) must be at least top_k ({top_k}), and top_k at least 1; "
            "raise num_beams or lower top_k."
        )


def search_beams(
    step: Step,
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    num_requests: int,
    num_beams: int,
    mass_before: Float[Tensor, "request bound"] | None,
    choose: Chooser,
) -> Beams:
    """Return the finished beams of :func:`search_allowed`, chosen by ``choose`` at each level."""
    beams, parent = Beams.at_root(trie, num_requests), trie.keys.new_zeros((num_requests, 1))
    codes = parent
    for level in range(trie.num_levels):
        beams, parent, codes = advance(
            beams,
            step(level, parent, codes),
            trie,
            allowed,
            level=level,
            width=num_beams,
            mass_before=mass_before,
            choose=choose,
        )
    return beams


def best_children(candidates: Float[Tensor, "request beam code"], width: int) -> Chosen:
    """Choose the ``width`` best children of all beams, in ascending order of beam and code."""
    flat, size = candidates.flatten(1), candidates.shape[2]
    chosen = best_columns(flat, min(width, flat.shape[1]))
    return Chosen(chosen // size, chosen % size, flat.gather(1, chosen))


def advance(
    beams: Beams,
    log_probabilities: Float[Tensor, "request beam code"],
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    level: int,
    width: int,
    mass_before: Float[Tensor, "request bound"] | None,
    choose: Chooser = best_children,
) -> tuple[Beams, Int[Tensor, "request chosen"], Int[Tensor, "request chosen"]]:
    """Return the chosen children of all beams, each with its parent and code.

    This is the whole cost of the catalogue per step: static shapes, and no read by the host.
    """
    bounds = trie.child_bounds(beams.lo, beams.hi, level=level)
    if mass_before is not None:
        log_probabilities = over_children(log_probabilities, bounds, mass_before)
    num_allowed = allowed_in_children(allowed, trie, bounds, level=level)
    candidates = candidate_scores(beams.scores, log_probabilities, num_allowed)
    parent, codes, scores = choose(candidates, width)
    return follow(bounds, parent, codes, scores), parent, codes


def over_children(
    logits: Float[Tensor, "request beam code"],
    bounds: Int[Tensor, "request beam bound"],
    mass_before: Float[Tensor, "request position"],
) -> Float[Tensor, "request beam code"]:
    """Normalize over the codes that occur in the catalogue, each weighted by its items' mass.

    With equal logits every item gets its share of the mass. The probabilities of all Semantic IDs
    sum to one: IDs without items get none, and an item gains nothing from being alone behind its
    prefix.

    Args:
        logits: Logits of the codes of one level, after each beam; a constant may be missing.
        bounds: Children of each beam, from ``SemanticIdTrie.child_bounds``.
        mass_before: Mass of the items before each position of the trie, rising from 0. float64
            keeps small shares of a large catalogue. ``arange`` gives all items equal mass.

    Returns:
        Log-probabilities, in nats; very low (not -inf) for codes that no item has.
    """
    flat = bounds.flatten(1).long()
    mass = mass_before.gather(1, flat).view(bounds.shape).diff(dim=-1)
    weighed = logits.float() + mass.float().clamp(min=LEAST_MASS).log()
    empty = bounds.diff(dim=-1).sub_(1).clamp_(max=0)  # as in candidate_scores
    return (weighed + empty.bitwise_and_(_BITS_OF_NO_ITEM).view(torch.float32)).log_softmax(dim=-1)


def candidate_scores(
    scores: Float[Tensor, "request beam"],
    log_probabilities: Float[Tensor, "request beam code"],
    num_allowed: Int[Tensor, "request beam code"],
) -> Float[Tensor, "request beam code"]:
    """Score every child of every beam; -inf for no allowed item or a NaN of the model."""
    # a comparison and a fill take ten times as long as arithmetic on the float's bits
    closed = num_allowed.sub(1).clamp_(max=0)  # -1 (all bits) where closed, else 0
    total = log_probabilities.float() + scores[..., None]
    total.view(torch.int32).bitwise_or_(closed)  # all bits set is NaN
    return total.nan_to_num_(nan=_LOWEST, posinf=-_LOWEST, neginf=_LOWEST)


def best_columns(
    candidates: Float[Tensor, "request candidate"], width: int
) -> Int[Tensor, "request beam"]:
    """Return the ``width`` best columns in ascending order; ties go to the first column.

    topk does not define the order of ties, so score and column are packed into one unique number:
    the float's bits, made monotone, above the reversed column.
    """
    bits = candidates.add(0.0).view(torch.int32)  # -0.0 becomes 0.0: equal scores, equal bits
    bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))  # monotone
    column = torch.arange(candidates.shape[1] - 1, -1, -1, device=candidates.device)
    ordered = bits.long().bitwise_left_shift_(32).add_(column)
    best = ordered.topk(width, dim=1, sorted=False).values
    return (candidates.shape[1] - 1 - (best & 0xFFFFFFFF)).sort(dim=1).values


def follow(
    bounds: Int[Tensor, "request beam bound"],
    parent: Int[Tensor, "request chosen"],
    codes: Int[Tensor, "request chosen"],
    scores: Float[Tensor, "request chosen"],
) -> Beams:
    """Return the beams extended by ``codes``; those with score -inf end."""
    flat, alive = bounds.flatten(1), scores > _LOWEST
    cell = parent * bounds.shape[2] + codes
    return Beams(
        lo=torch.where(alive, flat.gather(1, cell), 0),
        hi=torch.where(alive, flat.gather(1, cell + 1), 0),
        scores=scores,
    )


def expand(beams: Beams, trie: SemanticIdTrie, allowed: AllowedItems, top_k: int) -> Decoded:
    """Sort finished beams by score, and expand them to their allowed items."""
    scores, order = beams.scores.sort(dim=1, descending=True, stable=True)
    lo, hi = beams.lo.gather(1, order), beams.hi.gather(1, order)
    first = allowed.before(lo)
    ends = (allowed.before(hi) - first).cumsum(dim=1)  # [request, beam] items up to this beam
    slots = torch.arange(top_k, device=lo.device).expand(len(lo), top_k).contiguous()
    beam = torch.searchsorted(ends, slots, right=True).clamp(max=lo.shape[1] - 1)
    filled: Bool[Tensor, "request rank"] = slots < ends[:, -1:]
    starts = torch.nn.functional.pad(ends, (1, -1)).gather(1, beam)
    count = first.gather(1, beam) + slots - starts
    position = allowed.position_of(count.int()).long().clamp(0, trie.num_items - 1)
    return Decoded(
        ranked=RankedItems(
            items=torch.where(filled, trie.items[position], -1),
            scores=torch.where(filled, scores.gather(1, beam), _LOWEST),
        ),
        keys=torch.where(lo < hi, trie.keys[lo.long()], -1),
        log_probabilities=scores,
    )
