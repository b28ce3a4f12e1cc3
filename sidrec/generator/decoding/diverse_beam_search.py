"""Diverse beam search under the trie: groups of beams that avoid each other's codes."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import (
    Beams,
    Chosen,
    Decoded,
    Step,
    best_children,
    check_top_k,
    expand,
    search_beams,
)
from sidrec.generator.decoding.item_filters import AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie

_LOWEST = float("-inf")


@torch.no_grad()
def diverse_search(
    step: Step,
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    num_requests: int,
    num_beams: int,
    num_groups: int,
    diversity_penalty: float,
    top_k: int,
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> Decoded:
    """Search with ``num_groups`` groups of beams, one after another at each level.

    A group pays ``diversity_penalty`` for a code once per beam of an earlier group that took the
    same code at the same level, whatever the prefix; the penalty stays in the running score. Groups
    can end in the same Semantic ID, which is kept once, with its best score. There may thus be
    fewer than ``num_beams`` distinct ones, and lists shorter than ``top_k`` although the catalogue
    holds more. One group is plain beam search. Ties go to the lower Semantic ID.

    Args:
        step: Decoding step of the model, set to the batch's sources; called once per level.
        trie: Trie of the catalogue, on the model's device.
        allowed: Items that each request may get.
        num_requests: Number of requests in the batch.
        num_beams: Number of beams of all groups together.
        num_groups: Number of groups; divides ``num_beams``.
        diversity_penalty: Penalty, in nats, at least 0.
        top_k: Length of the lists, at most ``num_beams``.
        mass_before: See ``search_allowed``.

    Returns:
        Scores are log-probabilities less penalties.

    Raises:
        ConfigError: If the numbers do not fit together.

    Source:
        Vijayakumar et al. 2018 (https://arxiv.org/abs/1610.02424), with Hamming diversity, as in
        transformers up to 4.56. Differs: codes that no item has are never taken, so they count
        in no penalty; a Semantic ID appears once.
    """
    check_groups(num_beams, num_groups=num_groups, diversity_penalty=diversity_penalty)
    check_top_k(num_beams=num_beams, top_k=top_k)
    beams = search_beams(
        step,
        trie,
        allowed,
        num_requests=num_requests,
        num_beams=num_beams,
        mass_before=mass_before,
        choose=partial(_choose, num_groups=num_groups, diversity_penalty=diversity_penalty),
    )
    return expand(merged(beams), trie, allowed, top_k)


def check_groups(num_beams: int, *, num_groups: int, diversity_penalty: float) -> None:
    """Check that groups divide the beams evenly.

    Raises:
        ConfigError: If ``num_groups`` does not divide ``num_beams``, or the penalty is negative.
    """
    if num_groups < 1 or num_beams % num_groups:
        raise ConfigError(
            f"num_groups ({num_groups}) must divide num_beams ({num_beams}); change one of them."
        )
    if not diversity_penalty >= 0:
        raise ConfigError(f"diversity_penalty must be at least 0, got {diversity_penalty}.")


def _choose(
    candidates: Float[Tensor, "request beam code"],
    num_beams: int,
    *,
    num_groups: int,
    diversity_penalty: float,
) -> Chosen:
    """Let the groups choose in turn."""
    num_requests, num_parents, size = candidates.shape
    own = num_parents // num_groups if num_parents > 1 else 1  # all groups share the root's beam
    taken = candidates.new_zeros((num_requests, size))
    parents, codes, scores = [], [], []
    for group in range(num_groups):
        first = group * own if num_parents > 1 else 0
        penalty = diversity_penalty * taken[:, None]
        mine = best_children(candidates[:, first : first + own] - penalty, num_beams // num_groups)
        parents.append(first + mine.parent)
        codes.append(mine.codes)
        scores.append(mine.scores)
        taken.scatter_add_(1, codes[-1], (scores[-1] > _LOWEST).float())
    return Chosen(*(torch.cat(parts, dim=1) for parts in (parents, codes, scores)))


def merged(beams: Beams) -> Beams:
    """Keep each Semantic ID once, with its best score, in the order of the keys."""
    alive: Bool[Tensor, "request beam"] = beams.lo < beams.hi
    same = (beams.lo[:, :, None] == beams.lo[:, None, :]) & alive[:, None, :]
    mine, other = beams.scores[:, :, None], beams.scores[:, None, :]
    place = torch.arange(alive.shape[1], device=alive.device)
    better = (other > mine) | ((other == mine) & (place[None, :] < place[:, None]))
    kept = alive & ~(same & better).any(dim=2)
    lo, hi = torch.where(kept, beams.lo, 0), torch.where(kept, beams.hi, 0)
    order = torch.where(kept, beams.lo, torch.iinfo(beams.lo.dtype).max).argsort(dim=1)
    scores = torch.where(kept, beams.scores, _LOWEST)
    return Beams(lo.gather(1, order), hi.gather(1, order), scores.gather(1, order))
