"""How a prefix goes on: the children of every prefix of one level, as arrays."""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChildTable:
    """All bounds of all prefixes, one row each: a beam's children lie side by side in memory.

    Attributes:
        row_of: Row of the prefix that the item at each position has; of no position: the last.
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
    """Only the children that exist, one after another, for levels whose table would not fit.

    Attributes:
        child_of: Child to which the item at each position belongs, numbered in their order.
        starts: First position of each child, and one end more.
        codes: Code of each child.
        codebook_size: Number of codes at this level.
        most: Children that a prefix has at most: a constant, so that shapes stay static.
    """

    child_of: Int[Tensor, " position"]
    starts: Int[Tensor, " child_end"]
    codes: Int[Tensor, " child"]
    codebook_size: int
    most: int

    def of(
        self, lo: Int[Tensor, "request beam"], hi: Int[Tensor, "request beam"]
    ) -> Int[Tensor, "request beam bound"]:
        """Return the bounds of the children of the prefixes that own the ranges ``[lo, hi)``."""
        places = torch.arange(self.most, device=lo.device, dtype=lo.dtype)
        child = self.child_of[lo][..., None] + places  # [request, beam, place]
        real = child < len(self.codes)
        child = torch.where(real, child, 0)
        start, end = self.starts[child], self.starts[1:][child]
        own = real & (start < hi[..., None])
        num_items = torch.where(own, end - start, 0)
        sums = lo.new_zeros((*lo.shape, self.codebook_size + 1), dtype=torch.int32)
        sums[..., 0] = torch.where(lo < hi, lo, 0)
        sums.scatter_add_(2, torch.where(own, self.codes[child] + 1, 0).long(), num_items)
        return sums.cumsum(dim=2, dtype=torch.int32)

    def to(self, device: torch.device | str) -> "ChildList":
        """Return the same list on ``device``."""
        return replace(
            self,
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
            levels.append(_table(row_of, num_rows, codes, size))
        else:
            most = int(torch.bincount(row_of[starts]).max())
            ends = torch.cat([starts, starts.new_tensor([len(keys)])]).int()
            levels.append(ChildList(child_of, ends, codes[starts].int(), size, most))
        row_of, num_rows = child_of, len(starts)
    return tuple(levels)


def _table(
    row_of: Int[Tensor, " position"], num_rows: int, codes: Int[Tensor, " item"], size: int
) -> ChildTable:
    cells = row_of[:-1].long() * size + codes
    ends = torch.bincount(cells, minlength=num_rows * size).cumsum(dim=0).int()
    bounds = ends.new_zeros((num_rows + 1, size + 1))
    bounds[:-1, 1:] = ends.view(num_rows, size)
    bounds[1:-1, 0] = bounds[:-2, -1]  # a row begins where the row before ends
    return ChildTable(row_of, bounds)
