"""Backfill of short result lists in a deterministic order."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.generator.decoding.item_filters import AllowedItems
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.types import RankedItems

_LOWEST = float("-inf")
_MOST_AT_ONCE = 4_096


def top_up(
    ranked: RankedItems,
    *,
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    fill_order: Int[Tensor, " item"],
) -> RankedItems:
    """Backfill lists that are shorter than the request's items allow.

    A beam search with at least as many beams as places fills every list, since each beam ends in an
    item. Groups of beams that meet in the same items, and samples, may leave lists short. Found
    items keep their places. The first allowed items of ``fill_order`` that were not found follow,
    with score -inf, since the search has not scored them.

    Args:
        ranked: Items that the search found; -1 pads at the end of a row.
        trie: Trie of the catalogue.
        allowed: Items that each request may get.
        fill_order: Every item_index of the catalogue once: train popularity, then item_index.
    """
    if bool((ranked.items >= 0).all()):
        return ranked
    items, scores = ranked.items.clone(), ranked.scores.clone()
    num_requests, top_k = items.shape
    ends = torch.full((num_requests, 1), trie.num_items, dtype=torch.int32, device=items.device)
    wanted = allowed.before(ends).clamp(max=top_k)[:, 0].long()
    found = (items >= 0).sum(dim=1)
    start, width = 0, max(64, 2 * top_k)
    while start < len(fill_order) and bool((found < wanted).any()):
        candidates = fill_order[start : start + width]
        fresh = _allowed_of(candidates, trie, allowed, num_requests)
        fresh &= ~(items[:, :, None] == candidates).any(dim=1)
        place = found[:, None] + fresh.cumsum(dim=1) - 1
        row, column = (fresh & (place < wanted[:, None])).nonzero(as_tuple=True)
        items[row, place[row, column]] = candidates[column]
        scores[row, place[row, column]] = _LOWEST
        found = (items >= 0).sum(dim=1)
        start, width = start + width, min(2 * width, _MOST_AT_ONCE)
    return RankedItems(items, scores)


def popular_first(popularity: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """Return every item_index by falling number of train interactions, ties by item_index.

    >>> popular_first(torch.tensor([3, 7, 3]))
    tensor([1, 0, 2])
    """
    return torch.argsort(popularity, descending=True, stable=True)


def _allowed_of(
    candidates: Int[Tensor, " candidate"],
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    num_requests: int,
) -> Bool[Tensor, "request candidate"]:
    position = trie.position[candidates].int().expand(num_requests, -1).contiguous()
    return allowed.before(position + 1) > allowed.before(position)
