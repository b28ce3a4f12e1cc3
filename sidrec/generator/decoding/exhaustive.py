"""Exhaustive search: score every Semantic ID of the catalogue, without pruning."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import Beams, Decoded, Step, expand, over_children
from sidrec.generator.decoding.item_filters import AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie

_LOWEST = float("-inf")


@torch.no_grad()
def exact_search(
    start: Callable[[], Step],
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    num_requests: int,
    top_k: int,
    prefixes_at_once: int,
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> Decoded:
    """Return the result of an infinitely wide beam search; time grows with the catalogue.

    Args:
        start: Returns a new step of the model for the same batch; called once per block.
        trie: Trie of the catalogue, on the model's device.
        allowed: Items that each request may get.
        num_requests: Number of requests in the batch.
        top_k: Length of the lists.
        prefixes_at_once: See :func:`catalogue_scores`.
        mass_before: See ``search_allowed``.

    Raises:
        ConfigError: If ``top_k`` or ``prefixes_at_once`` is below 1.
    """
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1, got {top_k}.")
    scores, starts = catalogue_scores(
        start,
        trie,
        num_requests=num_requests,
        prefixes_at_once=prefixes_at_once,
        mass_before=mass_before,
    )
    lo = starts[:-1].int().expand(num_requests, -1)
    hi = starts[1:].int().expand(num_requests, -1)
    closed = (allowed.before(hi.contiguous()) <= allowed.before(lo.contiguous())) | scores.isnan()
    beams = Beams(lo.masked_fill(closed, 0), hi.masked_fill(closed, 0), scores)
    beams = beams._replace(scores=scores.masked_fill(closed, _LOWEST))
    return expand(beams, trie, allowed, top_k)


@torch.no_grad()
def catalogue_scores(
    start: Callable[[], Step],
    trie: SemanticIdTrie,
    *,
    num_requests: int,
    prefixes_at_once: int,
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> tuple[Float[Tensor, "request semantic_id"], Int[Tensor, " semantic_id_end"]]:
    """Return the log-probability and the first position of every Semantic ID.

    It scores the catalogue in blocks of prefixes that lack only the last code. Every block decodes
    again from the root, along the prefixes that it needs.

    Args:
        start: Returns a new step of the model for the same batch; called once per block.
        trie: Trie of the catalogue, on the model's device.
        num_requests: Number of requests in the batch.
        prefixes_at_once: Size of a block: trades memory for speed, never changes the result.
        mass_before: See ``search_allowed``.

    Returns:
        Scores in nats, and positions with one more end; both in the order of the keys.

    Raises:
        ConfigError: If ``prefixes_at_once`` is below 1.
    """
    if prefixes_at_once < 1:
        raise ConfigError(f"prefixes_at_once must be at least 1, got {prefixes_at_once}.")
    depths = [_starts(trie, depth) for depth in range(trie.num_levels + 1)]
    parts = []
    for block in torch.split(depths[-2][:-1], prefixes_at_once):
        low, high = int(block[0]), int(depths[-2][torch.searchsorted(depths[-2], block[-1]) + 1])
        parts.append(_score_range(start(), trie, depths, low, high, num_requests, mass_before))
    return torch.cat(parts, dim=1), depths[-1]


def _starts(trie: SemanticIdTrie, depth: int) -> Int[Tensor, " prefix_end"]:
    """Return the first position of each prefix of ``depth`` codes, and the end."""
    prefix = trie.keys
    for size in reversed(trie.codebook_sizes[depth:]):
        prefix = prefix // size
    new = torch.ones_like(prefix, dtype=torch.bool)
    new[1:] = prefix[1:] != prefix[:-1]
    return torch.cat([new.nonzero()[:, 0], prefix.new_tensor([len(prefix)])])


def _score_range(
    step: Step,
    trie: SemanticIdTrie,
    depths: list[Int[Tensor, " _"]],
    low: int,
    high: int,
    num_requests: int,
    mass_before: Float[Tensor, "request bound"] | None,
) -> Float[Tensor, "request semantic_id"]:
    """Score the Semantic IDs at the positions from ``low`` to ``high``."""
    starts = depths[0][:-1]  # first position of each beam; at the root the whole catalogue
    parent, codes = torch.zeros_like(starts), torch.zeros_like(starts)
    scores = torch.zeros((num_requests, 1), device=starts.device)
    for level, size in enumerate(trie.codebook_sizes):
        log_probabilities = step(level, *(x.repeat(num_requests, 1) for x in (parent, codes)))
        edges = depths[level]
        own = torch.searchsorted(edges, starts)
        lo, hi = edges[own].int(), edges[own + 1].int()
        if mass_before is not None:
            bounds = trie.child_bounds(lo[None], hi[None], level=level)
            bounds = bounds.expand(num_requests, -1, -1).contiguous()
            log_probabilities = over_children(log_probabilities, bounds, mass_before)
        total = (scores[..., None] + log_probabilities.float()).flatten(1)
        below = depths[level + 1][:-1]
        touched = (depths[level + 1][1:] > low) & (below < high)
        below = below[touched]  # children that hold a position of the range
        parent = torch.searchsorted(starts, below, right=True) - 1
        codes = _code_at(trie, below, level)
        scores, starts = total[:, parent * size + codes], below
    return scores


def _code_at(
    trie: SemanticIdTrie, position: Int[Tensor, " beam"], level: int
) -> Int[Tensor, " beam"]:
    key = trie.keys[position]
    for size in reversed(trie.codebook_sizes[level + 1 :]):
        key = key // size
    return key % trie.codebook_sizes[level]
