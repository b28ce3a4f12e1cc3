"""Item filters: the items that a request may get, as counts over the trie's sorted positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.generator.decoding.trie import SemanticIdTrie


def pad_items(rows: Sequence[Sequence[int] | np.ndarray]) -> Int[Tensor, "request item"]:
    """Stack lists of items in one tensor; -1 pads the shorter ones.

    >>> pad_items([[7], [1, 2]])
    tensor([[ 7, -1],
            [ 1,  2]])
    """
    width = max(map(len, rows), default=0)
    padded = torch.full((len(rows), width), -1, dtype=torch.long)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row, dtype=torch.long)  # copies: may be read-only
    return padded


@runtime_checkable
class AllowedItems(Protocol):
    """Item filter: a set of positions per request, known by its counts before each position.

    A range ``[lo, hi)`` holds an allowed item where ``before(hi) > before(lo)``. Its first one is
    at ``position_of(before(lo))``. A search needs nothing else.

    Choose the filter by what a request may get:

    - all but a few: ``AllItemsBut``;
    - a short list: ``ListedItems``;
    - a large set that all requests share, less a few each: ``SharedItems``.
    """

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return the number of allowed items before each position."""
        ...

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        ...


@dataclass(frozen=True, slots=True)
class AllItemsBut:
    """Filter that excludes a short list per request, such as its own history.

    Attributes:
        excluded: Excluded positions of each request, distinct, ascending; padding is so far
            beyond the last position that it never counts.
    """

    excluded: Int[Tensor, "request excluded"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, excluded: Int[Tensor, "request excluded"]) -> "AllItemsBut":
        """Create the filter from item_index, by look-up in the trie.

        Args:
            trie: Trie of the catalogue.
            excluded: item_index to leave out, in any order, with repetitions; -1 on padding.
        """
        beyond = trie.num_items + excluded.shape[1]
        position = trie.position[excluded.clamp(min=0)]
        position = torch.where(excluded >= 0, position, beyond).sort(dim=1).values
        again = torch.zeros_like(position, dtype=torch.bool)
        again[:, 1:] = position[:, 1:] == position[:, :-1]
        return cls(position.masked_fill(again, beyond).sort(dim=1).values.int())

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return the number of allowed items before each position."""
        if not self.excluded.shape[1]:
            return position
        flat = position.flatten(1).int()
        missing = torch.searchsorted(self.excluded, flat, out_int32=True)
        return position - missing.view(position.shape)

    def num_allowed(
        self, trie: SemanticIdTrie, bounds: Int[Tensor, "request beam bound"], *, level: int
    ) -> Int[Tensor, "request beam code"]:
        """Return the number of allowed items of each child: all, less its excluded ones.

        Counting the few excluded items is cheaper than a look-up for each of many bounds.
        """
        counts = bounds.diff(dim=-1)
        if not self.excluded.shape[1]:
            return counts
        sizes = trie.codebook_sizes
        key = trie.keys[self.excluded.clamp(max=trie.num_items - 1).long()]  # [request, excluded]
        code = key // math.prod(sizes[level + 1 :]) % sizes[level]
        position = self.excluded[:, None]  # padding is beyond every range
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


def allowed_in_children(
    allowed: AllowedItems,
    trie: SemanticIdTrie,
    bounds: Int[Tensor, "request beam bound"],
    *,
    level: int,
) -> Int[Tensor, "request beam code"]:
    """Return the number of allowed items of every child of every beam.

    Args:
        allowed: Items that each request may get.
        trie: Trie of the catalogue.
        bounds: Bounds from ``SemanticIdTrie.child_bounds``.
        level: Level of the children's codes.
    """
    if isinstance(allowed, AllItemsBut) and allowed.excluded.shape[1] <= bounds.shape[2]:
        return allowed.num_allowed(trie, bounds, level=level)
    return allowed.before(bounds).diff(dim=-1).int()


class Restriction(NamedTuple):
    """Restriction of one request.

    Attributes:
        allowed: item_index of the only items that it may get; None allows the whole catalogue.
        excluded: item_index that it must not get, allowed or not.
    """

    allowed: tuple[int, ...] | None = None
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedItems:
    """Filter with a list of allowed items per request; memory grows with the longest list only.

    Attributes:
        positions: Allowed positions of each request, distinct, ascending; padding is beyond the
            last position.
    """

    positions: Int[Tensor, "request allowed"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, restrictions: Sequence[Restriction]) -> "ListedItems":
        """Create the filter from allowed less excluded items; every request has a list."""
        rows = [np.setdiff1d(_array(one.allowed or ()), one.excluded) for one in restrictions]
        items = pad_items(rows).to(trie.position.device)
        position = trie.position[items.clamp(min=0)]
        return cls(torch.where(items >= 0, position, trie.num_items).sort(dim=1).values.int())

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return the number of allowed items before each position."""
        flat = position.flatten(1).int().contiguous()
        return torch.searchsorted(self.positions, flat, out_int32=True).view(position.shape)

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        last = self.positions.shape[1] - 1
        if last < 0:
            return torch.zeros_like(count)
        return self.positions.gather(1, count.long().clamp(max=last))


class SharedSet(NamedTuple):
    """Set of items, counted over the trie's positions.

    Attributes:
        is_inside: True at the positions of the set's items.
        counts: ``counts[p]`` is the number of items of the set before position ``p``.
        positions: Positions of the set's items, ascending.
    """

    is_inside: Bool[Tensor, " item"]
    counts: Int[Tensor, " bound"]
    positions: Int[Tensor, " allowed"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, allowed: Bool[Tensor, " item"]) -> "SharedSet":
        """Count the items where ``allowed``, indexed by item_index, is True; at least one."""
        inside = allowed.to(trie.items.device)[trie.items]
        counts = torch.nn.functional.pad(inside.cumsum(dim=0, dtype=torch.int32), (1, 0))
        return cls(inside, counts, inside.nonzero().flatten().int())


@dataclass(frozen=True, slots=True)
class SharedItems:
    """Filter with one set for all requests, such as items in stock, less a short list of each.

    Excluded items of a request are looked up among the ranks within the set.

    Attributes:
        shared: Set of all requests.
        but: Ranks within the set that each request must not get.
    """

    shared: SharedSet
    but: AllItemsBut

    @classmethod
    def of(
        cls, trie: SemanticIdTrie, shared: SharedSet, excluded: Int[Tensor, "request excluded"]
    ) -> "SharedItems":
        """Create the filter from excluded item_index; repetitions are valid, -1 is padding."""
        beyond = len(shared.positions) + excluded.shape[1]
        position = trie.position[excluded.clamp(min=0)]
        counted = (excluded >= 0) & shared.is_inside[position]
        rank = torch.where(counted, shared.counts[position], beyond).sort(dim=1).values
        again = torch.zeros_like(counted)
        again[:, 1:] = rank[:, 1:] == rank[:, :-1]
        return cls(shared, AllItemsBut(rank.masked_fill(again, beyond).sort(dim=1).values.int()))

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return the number of allowed items before each position."""
        return self.but.before(self.shared.counts[position.long()])

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        rank = self.but.position_of(count).long()
        return self.shared.positions[rank.clamp(min=0, max=len(self.shared.positions) - 1)]


def allowed_items(
    trie: SemanticIdTrie,
    restrictions: Sequence[Restriction],
    shared: SharedSet | None,
) -> AllowedItems:
    """Return the item filter for the requests of a batch.

    Args:
        trie: Trie of the catalogue.
        restrictions: One per request; either all have a list of allowed items or none has.
        shared: Set that limits all requests without a list.
    """
    if restrictions and restrictions[0].allowed is not None:
        return ListedItems.of(trie, restrictions)
    excluded = pad_items([one.excluded for one in restrictions]).to(trie.position.device)
    if shared is None:
        return AllItemsBut.of(trie, excluded)
    return SharedItems.of(trie, shared, excluded)


def _array(items: Sequence[int]) -> np.ndarray:
    return np.asarray(items, dtype=np.int64)
