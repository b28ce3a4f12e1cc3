"""Trie of the catalogue's Semantic IDs, as one sorted array: valid codes, and items."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sidrec.errors import DataError
from sidrec.generator.decoding.transitions import Children, children_of_levels
from sidrec.types import SemanticIdTable

_MAX_DENSE_ENTRIES = 1 << 25  # 128 MiB of int32; the third level of 256 codes needs half of it
_MAX_KEY = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SemanticIdTrie:
    """Prefix tree without nodes: items are sorted by Semantic ID, a prefix is a position range.

    A Semantic ID is packed into one int64 key, coarse level first, so that all items below a prefix
    are adjacent. A beam carries its range ``[lo, hi)``; after the last level the range *is* the
    item, or the items that share one Semantic ID.

    Attributes:
        keys: Packed Semantic ID at each position, not decreasing.
        items: item_index at each position. Items of one key are sorted by falling popularity, then
            by item_index: an order that does not depend on the answer.
        position: Position of each item, the inverse of ``items``.
        codebook_sizes: Number of codes at each level.
        children: Transitions of each level: a table with one row per prefix where it fits, else a
            list of existing children.

    Source:
        STATIC (arXiv 2602.22647): dense masks above, CSR below. Differs: it stores positions, not
        states, so a beam's range at the leaf *is* its items.
    """

    keys: Int[Tensor, " item"]
    items: Int[Tensor, " item"]
    position: Int[Tensor, " item"]
    codebook_sizes: tuple[int, ...]
    children: tuple[Children, ...]

    @classmethod
    def from_table(
        cls,
        table: SemanticIdTable,
        popularity: Int[Tensor, " item"] | None,
        *,
        max_dense_entries: int = _MAX_DENSE_ENTRIES,
    ) -> "SemanticIdTrie":
        """Create the trie from a table; its arrays are on the device of ``table.codes``.

        Args:
            table: Semantic ID of every item.
            popularity: Train interactions of each item, for the order of items that share a
                Semantic ID; None orders them by item_index alone.
            max_dense_entries: Largest table of children, in int32 entries, per level. Trades memory
                for speed and never changes a result.

        Raises:
            DataError: If the table is empty, or its Semantic IDs do not fit in 63 bits.
        """
        sizes, codes = table.codebook_sizes, table.codes.long()
        if not len(codes):
            raise DataError("The Semantic ID table is empty; make Semantic IDs with `sidrec ids`.")
        if math.prod(sizes) > _MAX_KEY:
            raise DataError(
                f"Semantic IDs of codebook sizes {sizes} do not fit in 63 bits; "
                "use fewer levels or smaller codebooks."
            )
        keys = pack(codes, sizes)
        items = torch.arange(len(keys), device=keys.device)
        if popularity is not None:
            items = torch.argsort(popularity.to(keys.device), descending=True, stable=True)
        items = items[torch.argsort(keys[items], stable=True)]
        keys = keys[items]
        position = torch.empty_like(items).scatter_(0, items, torch.arange(len(items)).to(items))
        children = children_of_levels(keys, sizes, max_entries=max_dense_entries)
        return cls(keys, items, position, sizes, children)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return len(self.items)

    @property
    def num_levels(self) -> int:
        """Number of codes in a Semantic ID."""
        return len(self.codebook_sizes)

    def to(self, device: torch.device | str) -> "SemanticIdTrie":
        """Return the same trie with its arrays on ``device``."""
        return replace(
            self,
            keys=self.keys.to(device),
            items=self.items.to(device),
            position=self.position.to(device),
            children=tuple(level.to(device) for level in self.children),
        )

    def child_bounds(
        self,
        lo: Int[Tensor, "request beam"],
        hi: Int[Tensor, "request beam"],
        *,
        level: int,
    ) -> Int[Tensor, "request beam bound"]:
        """Split each beam's range at every code of ``level``: one bound more than there are codes.

        The child at code ``c`` is ``[bounds[c], bounds[c + 1])``; it is empty where no item has
        that code next. All children of an empty beam (``lo == hi``) are empty.

        Args:
            lo: First position of each beam's range, at depth ``level``.
            hi: End of each range, exclusive.
            level: Level of the next codes, from 0.
        """
        return self.children[level].of(lo, hi)

    def semantic_id_ranks(
        self, keys: Int[Tensor, "request beam"], items: Int[Tensor, "request answer"]
    ) -> Int[Tensor, "request answer"]:
        """Return the rank of each item's Semantic ID in a list of distinct keys, from 0; else -1.

        Args:
            keys: Packed Semantic IDs, best first; -1 on padding.
            items: item_index; -1 on padding.
        """
        own = torch.where(items >= 0, self.keys[self.position[items.clamp(min=0)]], -2)
        same = keys[:, None, :] == own[:, :, None]  # [request, answer, beam]
        if not keys.shape[1]:
            return torch.full_like(items, -1)
        return torch.where(same.any(dim=2), same.int().argmax(dim=2), -1)


def pack(codes: Int[Tensor, "*any level"], sizes: tuple[int, ...]) -> Int[Tensor, "*any"]:
    """Pack each Semantic ID into one number with the same order as the tuples."""
    key = torch.zeros_like(codes[..., 0])
    for level, size in enumerate(sizes):
        key = key * size + codes[..., level]
    return key


def unpack(keys: Int[Tensor, "*any"], sizes: tuple[int, ...]) -> Int[Tensor, "*any level"]:
    """Return the codes of each packed Semantic ID, coarse level first."""
    codes = []
    for size in reversed(sizes):
        codes.append(keys % size)
        keys = keys // size
    return torch.stack(codes[::-1], dim=-1)
