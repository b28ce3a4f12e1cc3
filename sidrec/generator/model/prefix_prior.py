"""Prior over items, summed over every prefix of the trie, and decoding steps weighted by it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sidrec.generator.decoding.beam_search import (
    LEAST_MASS,
    NO_ITEM,
    Decoded,
    Step,
    best_columns,
    over_children,
)
from sidrec.generator.decoding.item_filters import AllItemsBut, AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import RankedItems


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Distinct prefixes of each depth, from one code to a whole Semantic ID.

    Attributes:
        node_at: Per depth: prefix of the item at each position of the trie, then a 0.
        first_child: Per depth: first child of each prefix, a prefix of the next depth; at the
            last depth the position of its first item.
    """

    node_at: tuple[Int[Tensor, " bound"], ...]
    first_child: tuple[Int[Tensor, " _"], ...]

    @classmethod
    def of(cls, trie: SemanticIdTrie) -> "PrefixTree":
        """Collect the prefixes of a trie's sorted Semantic IDs."""
        prefixes = trie.keys
        starts: list[Tensor] = []
        node_at: list[Tensor] = []
        for size in reversed(trie.codebook_sizes):
            begins = torch.ones_like(prefixes, dtype=torch.bool)
            begins[1:] = prefixes[1:] != prefixes[:-1]
            node = begins.cumsum(dim=0, dtype=torch.int32) - 1
            starts.insert(0, begins.nonzero().flatten())
            node_at.insert(0, F.pad(node, (0, 1)))
            prefixes = prefixes // size
        below = [node_at[depth + 1][rows].long() for depth, rows in enumerate(starts[:-1])]
        return cls(tuple(node_at), (*below, starts[-1]))


class PrefixMass:
    """Prior mass of every prefix: the unnormalized prior of each request, summed over its items.

    Sums run from the items up, each prefix over its children. They cost one exponential and at
    most ``level`` additions per item and request, and ``4 * requests * (items + prefixes)``
    bytes. Only non-negative float32 numbers are added, in the order of the children, so results
    have float32's relative precision and are the same on every run. Differences of cumulative
    sums have neither property on a GPU.

    Args:
        tree: Prefixes of the catalogue.
        scores: Logarithm of the prior, up to a constant per request, by position in the trie.
        is_allowed: True for allowed items, by position in the trie; the others have no mass.
    """

    def __init__(
        self,
        tree: PrefixTree,
        scores: Float[Tensor, "request item"],
        is_allowed: Bool[Tensor, "request item"],
    ) -> None:
        self._tree = tree
        with torch.autocast(scores.device.type, enabled=False):
            shut = scores.float().masked_fill(~is_allowed, NO_ITEM)
            mass = (shut - shut.detach().amax(dim=1, keepdim=True)).exp()
            mass = mass.clamp(min=LEAST_MASS) * is_allowed  # rounding excludes no allowed item
            below = mass.T.contiguous()  # [item, request]
            masses: list[Float[Tensor, "_ request"]] = []
            for first in reversed(tree.first_child):
                if len(first) < len(below):
                    children = torch.arange(len(below), device=first.device)
                    below = F.embedding_bag(children, below, first, mode="sum")
                masses.insert(0, below)
        self._masses = masses

    def log_softmax(
        self,
        level: int,
        logits: Float[Tensor, "request beam code"],
        bounds: Int[Tensor, "request beam bound"],
    ) -> Float[Tensor, "request beam code"]:
        """Return log-probabilities, in nats, of the codes that follow each beam.

        With equal logits each code has its share of the prior. Codes without an allowed item get
        a very low number (not -inf).

        Args:
            level: Level of the codes.
            logits: Logits of the codes, up to a constant per beam.
            bounds: Child ranges of each beam, from ``SemanticIdTrie.child_bounds``.
        """
        child = self._tree.node_at[level].index_select(0, bounds[..., :-1].flatten())
        child = child.view(len(bounds), -1).long()
        mass = self._masses[level].T.gather(1, child).view(logits.shape)
        is_open = (bounds.diff(dim=-1) > 0) & (mass > 0)
        weighed = logits.float() + torch.where(is_open, mass, 1.0).log()
        return weighed.masked_fill(~is_open, NO_ITEM).log_softmax(dim=-1)


class PriorSteps:
    """Decoding steps weighted by a prior and normalized over the catalogue; a ``Step``.

    Args:
        step: Steps of the model for the batch; logits up to a constant per beam.
        trie: Trie of the catalogue.
        mass: Prior mass of each request.
        t5_factor: Factor of the model's logits; 0: the prior alone.
    """

    def __init__(
        self, step: Step, trie: SemanticIdTrie, mass: PrefixMass, *, t5_factor: float
    ) -> None:
        self._step, self._trie, self._mass, self._factor = step, trie, mass, t5_factor
        self._bounds: Tensor | None = None

    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return log-probabilities of the codes of ``level``; very low where no item follows."""
        logits = self._step(level, parent, codes)
        if self._bounds is None:
            low = torch.zeros_like(parent, dtype=torch.int32)
            high = low + self._trie.num_items
        else:
            cell, flat = parent * self._bounds.shape[2] + codes, self._bounds.flatten(1)
            low, high = flat.gather(1, cell), flat.gather(1, cell + 1)
        self._bounds = self._trie.child_bounds(low, high, level=level)
        return self._mass.log_softmax(level, self._factor * logits.float(), self._bounds)


class TargetPath(NamedTuple):
    """T5's logits along the Semantic IDs of the targets.

    Attributes:
        logits: Per level: logits of all codes, given the target's earlier codes.
        bounds: Per level: child ranges of the target's prefix (``SemanticIdTrie.child_bounds``).
        codes: Semantic ID of each target.
        num_items: Number of items in the catalogue.
    """

    logits: list[Float[Tensor, "request _"]]
    bounds: list[Int[Tensor, "request _"]]
    codes: Int[Tensor, "request level"]
    num_items: int

    @property
    def has_items(self) -> list[Bool[Tensor, "request _"]]:
        """Per level: True for the codes that continue the target's prefix in the trie."""
        return [bounds.diff(dim=-1) > 0 for bounds in self.bounds]


def target_log_probabilities(
    path: TargetPath, mass: PrefixMass | None, *, t5_factor: float | Tensor
) -> list[Float[Tensor, "request _"]]:
    """Return the log-probabilities, in nats, of all codes at each level along the targets.

    Args:
        path: T5's logits along the targets.
        mass: Prior mass of each request; None: equal mass for all items.
        t5_factor: Factor of T5's logits.
    """
    found = []
    for level, (logits, bounds) in enumerate(zip(path.logits, path.bounds, strict=True)):
        logits, bounds = logits[:, None], bounds[:, None]
        if mass is None:
            before = torch.arange(path.num_items + 1, device=bounds.device).double()
            found.append(over_children(logits, bounds, before.expand(len(bounds), -1))[:, 0])
        else:
            found.append(mass.log_softmax(level, t5_factor * logits, bounds)[:, 0])
    return found


def likelihood_along(
    log_probabilities: list[Float[Tensor, "request _"]], path: TargetPath
) -> Float64[Tensor, " request"]:
    """Return the log-probability of each target, in nats: the sum over its codes.

    Args:
        log_probabilities: From ``target_log_probabilities``.
        path: T5's logits along the targets.
    """
    codes = path.codes.chunk(len(log_probabilities), dim=1)
    picked = [one.gather(1, code) for one, code in zip(log_probabilities, codes, strict=True)]
    return torch.cat(picked, dim=1).double().sum(dim=1)


def rank_by_scores(
    scores: Float[Tensor, "request item"],
    is_allowed: Bool[Tensor, "request item"],
    trie: SemanticIdTrie,
    *,
    top_k: int,
) -> Decoded:
    """Rank allowed items by their scores alone; ties by position in the trie.

    Args:
        scores: Logarithm of the prior, up to a constant, by position in the trie.
        is_allowed: True for allowed items, by position in the trie.
        trie: Trie of the catalogue.
        top_k: Length of the lists.
    """
    log_p = scores.float().masked_fill(~is_allowed, float("-inf")).log_softmax(dim=1)
    best = best_columns(log_p, min(top_k, log_p.shape[1]))
    values, order = log_p.gather(1, best).sort(dim=1, descending=True, stable=True)
    return _decoded(trie.items[best.gather(1, order)], values, trie)


def rerank(
    found: Decoded,
    scores: Float[Tensor, "request item"],
    trie: SemanticIdTrie,
    *,
    t5_factor: float,
    top_k: int,
) -> Decoded:
    """Re-rank retrieved items by ``t5_factor`` times T5's score plus the prior's score.

    Args:
        found: Result of a search by T5 alone.
        scores: Logarithm of the prior, up to a constant, by item_index.
        trie: Trie of the catalogue.
        t5_factor: Factor of T5's log-probabilities.
        top_k: Length of the lists.
    """
    items, own = found.ranked
    total = t5_factor * own + scores.gather(1, items.clamp(min=0))
    total = total.masked_fill(items < 0, float("-inf"))
    values, order = total.sort(dim=1, descending=True, stable=True)
    values, order = values[:, :top_k], order[:, :top_k]
    return _decoded(items.gather(1, order), values, trie)


def _decoded(
    items: Int[Tensor, "request rank"], values: Float[Tensor, "request rank"], trie: SemanticIdTrie
) -> Decoded:
    """Return ranked items with their distinct Semantic IDs."""
    real = values > float("-inf")
    keys = torch.where(real, trie.keys[trie.position[items.clamp(min=0)]], -1)
    again = (keys[:, :, None] == keys[:, None, :]).tril(diagonal=-1).any(dim=2) | ~real
    first = torch.argsort(again.byte(), dim=1, stable=True)  # distinct ones before the others
    return Decoded(
        ranked=RankedItems(torch.where(real, items, -1), values),
        keys=keys.masked_fill(again, -1).gather(1, first),
        log_probabilities=values.masked_fill(again, float("-inf")).gather(1, first),
    )


def allowed_positions(
    allowed: AllowedItems, trie: SemanticIdTrie, num_requests: int
) -> Bool[Tensor, "request item"]:
    """Return True for the items that each request allows, by position in the trie."""
    device = trie.items.device
    if isinstance(allowed, AllItemsBut):
        width = trie.num_items + allowed.excluded.shape[1] + 1  # padding is past the last position
        mask = torch.ones((num_requests, width), dtype=torch.bool, device=device)
        return mask.scatter_(1, allowed.excluded.long(), value=False)[:, : trie.num_items]
    bounds = torch.arange(trie.num_items + 1, dtype=torch.int32, device=device)
    return allowed.before(bounds.expand(num_requests, -1).contiguous()).diff(dim=1) > 0
