"""Which items, and which pairs of items, a training batch holds: a function of its number."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sidrec.pairs.batches import BatchNumber
from sidrec.pairs.item_item import ItemItemPairs
from sidrec.pairs.permutation import key_of, permute


class PairedVectors(NamedTuple):
    """Item pairs of a batch, as vectors.

    Attributes:
        left: Vectors of the left items.
        right: Row ``i`` is the item that a user had near ``left[i]``.
        right_item: item_index of the right items.
        known_positives: item_index of what is no negative for the row, padded with -1.
    """

    left: Float[Tensor, "pair dim"]
    right: Float[Tensor, "pair dim"]
    right_item: Int[Tensor, " pair"]
    known_positives: Int[Tensor, "pair known"]


class VectorBatch(NamedTuple):
    """Vectors to be reconstructed, and pairs to be drawn together.

    Attributes:
        vectors: Of this rank's items.
        pairs: None where no term asks for them.
    """

    vectors: Float[Tensor, "item dim"]
    pairs: PairedVectors | None


@dataclass(frozen=True, slots=True)
class VectorBatches(Dataset[VectorBatch]):
    """Batch by number, for one rank; ranks hold neighboring slices of one global batch.

    Attributes:
        vectors: Of the whole catalogue.
        batch_size: Items per rank; a catalogue smaller than a global batch fills a smaller one.
        pairs: Where pairs come from; None: there are none.
        pairs_per_batch: Pairs per rank.
        rank: Of this process.
        world_size: Number of ranks.
        seed: Of shuffles and draws.
    """

    vectors: Float[Tensor, "item dim"]
    batch_size: int
    pairs: ItemItemPairs | None
    pairs_per_batch: int
    rank: int
    world_size: int
    seed: int

    @property
    def items_per_rank(self) -> int:
        """Items of a batch on each rank."""
        return max(1, min(self.batch_size, len(self.vectors) // self.world_size))

    def __len__(self) -> int:
        return max(1, len(self.vectors) // (self.items_per_rank * self.world_size))

    def __getitem__(self, number: BatchNumber) -> VectorBatch:
        rows = self._rows(number, self.items_per_rank, len(self.vectors), "items")
        return VectorBatch(self.vectors[torch.from_numpy(rows)], self._drawn(number))

    def _drawn(self, number: BatchNumber) -> PairedVectors | None:
        if self.pairs is None:
            return None
        rows = self._rows(number, self.pairs_per_batch, len(self.pairs), "pairs")
        drawn = self.pairs.draw(rows, seed=self.seed, epoch=number.epoch)
        right = torch.from_numpy(drawn.right_item)
        return PairedVectors(
            left=self.vectors[torch.from_numpy(drawn.left)],
            right=self.vectors[right],
            right_item=right,
            known_positives=torch.from_numpy(drawn.known_positives),
        )

    def _rows(self, number: BatchNumber, count: int, size: int, what: str) -> np.ndarray:
        first = (number.step * self.world_size + self.rank) * count
        places = np.arange(first, first + count, dtype=np.int64) % size
        return permute(places, size=size, key=key_of(self.seed, number.epoch, "shuffle", what))
