"""Transitions of the trie: the children of every prefix of one level, as arrays."""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChildTable:
    """Transition table: all bounds of all prefixes, one row each, contiguous per beam.

    Attributes:
        row_of: Row of the prefix of the item at each position; the last row past the end.
        bounds: ``bounds[row, code]`` is the first position at or after the prefix and code; the
            last column ends the last child. The last row has no children.
    """

    row_of: Int[Tensor, " position"]
    bounds: Int[Tensor, "row bound"]

    def of(
        self, lo: Int[Tensor, "request beam"], hi: Int[Tensor, "request beam"]
    ) -> Int[Tensor, "request beam bound"]:
        """Return the bounds of the children of the prefixes that own the ranges ``[lo, hi)``."""
        row = torch.where(lo < hi, self.row_of[lo], len(self.bounds) - 1)
        return self.bounds.index_select(0, row.flatten()).view(*lo.shape, self.bounds.shape[1])

    def to(self, device: torch.device | str) -> "ChildTable":
        """Return the same table on ``device``."""
        return ChildTable(self.row_of.to(device), self.bounds.to(device))


@dataclass(frozen=True, slots=True)
class ChildList:
    """Transition list: only the children that exist, for levels whose table would not fit.

    Most prefixes of such a level have few children, some have many. Those with many have a row in
    a table; the others list their children one after another.

    Attributes:
        many: Table of the prefixes with more than ``few`` children.
        child_of: Child of the item at each position, numbered in order.
        starts: First position of each child, and one more end.
        codes: Code of each child.
        few: Maximum number of children of a listed prefix; a constant, so that shapes stay static.
    """

    many: ChildTable
    child_of: Int[Tensor, " position"]
    starts: Int[Tensor, " child_end"]
    codes: Int[Tensor, " child"]
    few: int

    def of(
        self, lo: Int[Tensor, "request beam"], hi: Int[Tensor, "request beam"]
    ) -> Int[Tensor, "request beam bound"]:
        """Return the bounds of the children of the prefixes that own the ranges ``[lo, hi)``."""
        listed = (lo < hi) & (self.many.row_of[lo] == len(self.many.bounds) - 1)
        places = torch.arange(self.few, device=lo.device, dtype=lo.dtype)
        child = self.child_of[lo][..., None] + places  # [request, beam, place]
        real = child < len(self.codes)
        child = torch.where(real, child, 0)
        start, end = self.starts[child], self.starts[1:][child]
        own = real & (start < hi[..., None]) & listed[..., None]
        bounds = self.many.of(lo, hi)  # 0 for prefixes that list their children
        steps = torch.zeros_like(bounds)
        steps[..., 0] = torch.where(listed, lo, 0)
        code = torch.where(own, self.codes[child] + 1, 0).long()
        steps.scatter_add_(2, code, torch.where(own, end - start, 0))
        return bounds.add_(steps.cumsum(dim=2, dtype=torch.int32))

    def to(self, device: torch.device | str) -> "ChildList":
        """Return the same list on ``device``."""
        return replace(
            self,
            many=self.many.to(device),
            child_of=self.child_of.to(device),
            starts=self.starts.to(device),
            codes=self.codes.to(device),
        )


Children: TypeAlias = ChildTable | ChildList


def children_of_levels(
    keys: Int[Tensor, " item"], sizes: tuple[int, ...], *, max_entries: int
) -> tuple[Children, ...]:
    """Return the children of every level: a table where its entries fit, else a list.

    Args:
        keys: Packed Semantic IDs, not decreasing.
        sizes: Number of codes at each level.
        max_entries: Largest table, in int32 entries.
    """
    levels: list[Children] = []
    row_of = torch.zeros(len(keys) + 1, dtype=torch.int32, device=keys.device)
    row_of[-1], num_rows = 1, 1  # the root
    for level, size in enumerate(sizes):
        prefixes = keys // math.prod(sizes[level + 1 :])  # of depth level + 1
        codes = prefixes % size
        new = torch.ones_like(prefixes, dtype=torch.bool)
        new[1:] = prefixes[1:] != prefixes[:-1]
        child_of = torch.zeros_like(row_of)
        child_of[:-1] = new.cumsum(dim=0, dtype=torch.int32) - 1
        starts = new.nonzero()[:, 0]
        child_of[-1] = len(starts)
        if (num_rows + 1) * (size + 1) <= max_entries:
            every = torch.ones(num_rows, dtype=torch.bool, device=keys.device)
            levels.append(_table(row_of, every, codes, size))
        else:
            ends = torch.cat([starts, starts.new_tensor([len(keys)])]).int()
            num_children = torch.bincount(row_of[starts], minlength=num_rows)
            few = _few(num_children, size, max_entries)
            many = _table(row_of, num_children > few, codes, size)
            levels.append(ChildList(many, child_of, ends, codes[starts].int(), few))
        row_of, num_rows = child_of, len(starts)
    return tuple(levels)


def _few(num_children: Int[Tensor, " row"], size: int, max_entries: int) -> int:
    """Return the least power of two such that all prefixes with more children fit in a table."""
    few = 1
    while few < size and (int((num_children > few).sum()) + 1) * (size + 1) > max_entries:
        few *= 2
    return min(few, size)


def _table(
    row_of: Int[Tensor, " position"],
    chosen: Bool[Tensor, " row"],
    codes: Int[Tensor, " item"],
    size: int,
) -> ChildTable:
    """Return a table of the chosen prefixes; items of all others refer to its last row."""
    num_chosen = int(chosen.sum())
    number = torch.where(chosen, chosen.cumsum(dim=0) - 1, num_chosen)
    own = torch.full_like(row_of, num_chosen)
    own[:-1] = number[row_of[:-1]].int()
    inside = own[:-1] < num_chosen
    position = inside.nonzero()[:, 0]
    cells = own[position].long() * size + codes[position]
    counts = own.new_zeros(num_chosen * size)
    counts.scatter_add_(0, cells, torch.ones_like(own[:-1])[: len(cells)])
    bounds = own.new_zeros((num_chosen + 1, size + 1))
    if num_chosen:
        first = torch.full((num_chosen,), len(codes), device=codes.device)
        first.scatter_reduce_(0, own[position].long(), position, "amin")
        bounds[:-1, 0] = first.int()
        ends = counts.view(num_chosen, size).cumsum(dim=1, dtype=torch.int32)
        torch.add(ends, bounds[:-1, :1], out=bounds[:-1, 1:])
    return ChildTable(own, bounds)
