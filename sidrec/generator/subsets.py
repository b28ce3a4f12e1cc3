"""Which items a request may get: lists of its own, or one large set for everybody."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.generator.allowed import AllItemsBut, AllowedItems
from sidrec.generator.batches import pad_items
from sidrec.generator.trie import SemanticIdTrie


class Restriction(NamedTuple):
    """What one request may get.

    Attributes:
        allowed: item_index of the only items it may get; None: the whole catalogue.
        excluded: item_index that it must not get, allowed or not.
    """

    allowed: tuple[int, ...] | None = None
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedItems:
    """A list of allowed items per request; memory grows with the longest list alone.

    Attributes:
        positions: Allowed positions of each request, distinct, ascending; padding lies behind the
            last position.
    """

    positions: Int[Tensor, "request allowed"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, restrictions: Sequence[Restriction]) -> "ListedItems":
        """Look the allowed items up, without the excluded ones; every request has a list."""
        rows = [np.setdiff1d(_array(one.allowed or ()), one.excluded) for one in restrictions]
        items = pad_items(rows).to(trie.position.device)
        position = trie.position[items.clamp(min=0)]
        return cls(torch.where(items >= 0, position, trie.num_items).sort(dim=1).values.int())

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
        flat = position.flatten(1).int().contiguous()
        return torch.searchsorted(self.positions, flat, out_int32=True).view(position.shape)

    def position_of(self, count: Int[Tensor, "request slot"]) -> Int[Tensor, "request slot"]:
        """Return the position of the allowed item that has ``count`` allowed ones before it."""
        last = self.positions.shape[1] - 1
        if last < 0:
            return torch.zeros_like(count)
        return self.positions.gather(1, count.long().clamp(max=last))


class SharedSet(NamedTuple):
    """One set of items, counted over the trie's positions.

    Attributes:
        is_inside: True at the positions of the set's items.
        counts: ``counts[p]`` items of the set stand before position ``p``.
        positions: Positions of the set's items, ascending.
    """

    is_inside: Bool[Tensor, " item"]
    counts: Int[Tensor, " bound"]
    positions: Int[Tensor, " allowed"]

    @classmethod
    def of(cls, trie: SemanticIdTrie, allowed: Bool[Tensor, " item"]) -> "SharedSet":
        """Count the items where ``allowed``, by item_index, is True; at least one."""
        inside = allowed.to(trie.items.device)[trie.items]
        counts = torch.nn.functional.pad(inside.cumsum(dim=0, dtype=torch.int32), (1, 0))
        return cls(inside, counts, inside.nonzero().flatten().int())


@dataclass(frozen=True, slots=True)
class SharedItems:
    """One set for all requests, such as what is in stock, without a short list of each.

    What a request excludes is looked up among the set's own ranks.

    Attributes:
        shared: The set.
        but: Ranks within the set that each request must not get.
    """

    shared: SharedSet
    but: AllItemsBut

    @classmethod
    def of(
        cls, trie: SemanticIdTrie, shared: SharedSet, excluded: Int[Tensor, "request excluded"]
    ) -> "SharedItems":
        """Look the excluded items up; repetitions are allowed, -1 is padding."""
        beyond = len(shared.positions) + excluded.shape[1]
        position = trie.position[excluded.clamp(min=0)]
        counted = (excluded >= 0) & shared.is_inside[position]
        rank = torch.where(counted, shared.counts[position], beyond).sort(dim=1).values
        again = torch.zeros_like(counted)
        again[:, 1:] = rank[:, 1:] == rank[:, :-1]
        return cls(shared, AllItemsBut(rank.masked_fill(again, beyond).sort(dim=1).values.int()))

    def before(self, position: Int[Tensor, "request ..."]) -> Int[Tensor, "request ..."]:
        """Return how many allowed items stand before each position."""
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
    """Return what the requests of a batch may get.

    Args:
        trie: The catalogue.
        restrictions: One per request; either all have a list of allowed items or none has.
        shared: A set that limits all requests without a list.
    """
    if restrictions and restrictions[0].allowed is not None:
        return ListedItems.of(trie, restrictions)
    excluded = pad_items([one.excluded for one in restrictions]).to(trie.position.device)
    if shared is None:
        return AllItemsBut.of(trie, excluded)
    return SharedItems.of(trie, shared, excluded)


def _array(items: Sequence[int]) -> np.ndarray:
    return np.asarray(items, dtype=np.int64)
