"""Which items a request may get, as counts over the trie's sorted positions."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.generator.trie import SemanticIdTrie


@runtime_checkable
class AllowedItems(Protocol):
    """A set of positions per request, known by how many of its members lie before a position.

    A range ``[lo, hi)`` holds an allowed item where ``before(hi) > before(lo)``, and its first one
    stands at ``position_of(before(lo))``: that is all a search needs to know.

    Which to take, by what a request may get:

    - all but a few: ``AllItemsBut``;
    - any subset, given as booleans: ``OnlyItems``; one for a group of requests, in bits:
      ``bitmap.PackedItems``;
    - a short list: ``subsets.ListedItems``;
    - a large set that all requests share, less a few each: ``subsets.SharedItems``; any of the
      sets here less a few: ``bitmap.AllowedBut``.
    """

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        ...

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        ...


@dataclass(frozen=True, slots=True)
class AllItemsBut:
    """The whole catalogue without a short list per request, such as its own history.

    Attributes:
        excluded: Excluded positions of each request, distinct, ascending; padding lies so far
            beyond the last position that it never counts.
    """

    excluded: Int[Tensor, "request excluded"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, excluded: Int[Tensor, "request excluded"]) -> "AllItemsBut":
        """Look the items up in the trie.

        Args:
            trie: The catalogue.
            excluded: item_index to leave out, in any order, repetitions allowed; -1 on padding.
        """
        beyond = trie.num_items + excluded.shape[1]
        position = trie.position[excluded.clamp(min=0)]
        position = torch.where(excluded >= 0, position, beyond).sort(dim=1).values
        again = torch.zeros_like(position, dtype=torch.bool)
        again[:, 1:] = position[:, 1:] == position[:, :-1]
        return cls(position.masked_fill(again, beyond).sort(dim=1).values.int())

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        if not self.excluded.shape[1]:
            return position
        flat = position.flatten(1).int()
        missing = torch.searchsorted(self.excluded, flat, out_int32=True)
        return position - missing.view(position.shape)

    def num_allowed(
        self, trie: SemanticIdTrie, bounds: Int[Tensor, "request beam bound"], *, level: int
    ) -> Int[Tensor, "request beam code"]:
        """Return how many allowed items each child holds: all, less the excluded ones in it.

        Counts of the few excluded items are cheaper than a look-up for each of many bounds.
        """
        counts = bounds.diff(dim=-1)
        if not self.excluded.shape[1]:
            return counts
        sizes = trie.codebook_sizes
        key = trie.keys[self.excluded.clamp(max=trie.num_items - 1).long()]  # [request, excluded]
        code = key // math.prod(sizes[level + 1 :]) % sizes[level]
        position = self.excluded[:, None]  # padding lies beyond every range
        inside = (position >= bounds[..., :1]) & (position < bounds[..., -1:])
        code = code[:, None].expand(inside.shape)
        return counts.scatter_add_(2, code, -inside.to(counts.dtype))

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        num_excluded = self.excluded.shape[1]
        if not num_excluded:
            return count
        allowed_before = self.excluded - torch.arange(
            num_excluded, dtype=torch.int32, device=count.device
        )
        skipped = torch.searchsorted(allowed_before, count.int(), right=True, out_int32=True)
        return count + skipped


@dataclass(frozen=True, slots=True)
class OnlyItems:
    """A subset per request, such as what is in stock where the user lives.

    Attributes:
        counts: ``counts[r, p]`` allowed items of request ``r`` stand before position ``p``;
            one column more than there are items.
    """

    counts: Int[Tensor, "request bound"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, allowed: Bool[Tensor, "request item"]) -> "OnlyItems":
        """Look the items up in the trie.

        Args:
            trie: The catalogue.
            allowed: True at the item_index that the request may get.
        """
        counts = allowed.new_zeros((len(allowed), trie.num_items + 1), dtype=torch.int32)
        counts[:, 1:] = allowed[:, trie.items].cumsum(dim=1)
        return cls(counts)

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        return self.counts.gather(1, position.flatten(1).long()).view(position.shape)

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        first = torch.searchsorted(self.counts, count.int(), right=True, out_int32=True) - 1
        return first.clamp(max=self.counts.shape[1] - 2)


def allowed_in_children(
    allowed: AllowedItems,
    trie: SemanticIdTrie,
    bounds: Int[Tensor, "request beam bound"],
    *,
    level: int,
) -> Int[Tensor, "request beam code"]:
    """Return how many allowed items every child of every beam holds.

    Args:
        allowed: Items each request may get.
        trie: The catalogue.
        bounds: From ``SemanticIdTrie.child_bounds``.
        level: Level of the children's codes.
    """
    if isinstance(allowed, AllItemsBut) and allowed.excluded.shape[1] <= bounds.shape[2]:
        return allowed.num_allowed(trie, bounds, level=level)
    return allowed.before(bounds).diff(dim=-1).int()
