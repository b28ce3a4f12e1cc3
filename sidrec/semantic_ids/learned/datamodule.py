"""Data module of learned quantizers: item vectors and pairs of items."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError
from sidrec.pairs.item_item import ItemItemPairs, item_item_pairs
from sidrec.pairs.pair_settings import ItemPairSettings
from sidrec.settings import NonNegativeInt, PositiveInt
from sidrec.training.counter_rng import key_of, permute
from sidrec.training.numbered_batches import BatchNumber
from sidrec.training.resumable_data import ResumableDataModule


class PairedVectors(NamedTuple):
    """Pairs of items in a batch, as vectors.

    Attributes:
        left: Vectors of the left items.
        right: Row ``i`` is an item near ``left[i]`` in a user's history.
        right_item: item_index of the right items.
        known_positives: item_index of items that are not negatives of the row, padded with -1.
    """

    left: Float[Tensor, "pair dim"]
    right: Float[Tensor, "pair dim"]
    right_item: Int[Tensor, " pair"]
    known_positives: Int[Tensor, "pair known"]


class VectorBatch(NamedTuple):
    """Vectors to reconstruct, and pairs whose vectors the loss pulls together.

    Attributes:
        vectors: Vectors of this rank's items.
        pairs: Pairs of items; None if no loss term uses them.
    """

    vectors: Float[Tensor, "item dim"]
    pairs: PairedVectors | None


@dataclass(frozen=True, slots=True)
class VectorBatches(Dataset[VectorBatch]):
    """Batches of one rank by number; ranks hold neighboring slices of one global batch.

    Attributes:
        vectors: Vectors of the whole catalogue.
        batch_size: Items per rank; fewer if the catalogue is smaller than a global batch.
        pairs: Source of pairs; None for no pairs.
        pairs_per_batch: Pairs per rank.
        rank: Rank of this process.
        world_size: Number of ranks.
        seed: Seed of shuffles and draws.
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


class VectorDataModule(ResumableDataModule[VectorBatches]):
    """Data module that batches the vectors of the module's ``semantic_ids`` bundle.

    Args:
        batch_size: Items per rank.
        seed: Seed of shuffles, draws and the replacement of dead codes.
        corpus: Corpus directory, for pairs of items; ``--from`` gives the encoder run's.
        pairs_per_batch: Pairs of items per rank, if the module needs pairs.
        item_pairs: How pairs of items are drawn.
    """

    def __init__(
        self,
        *,
        batch_size: PositiveInt = 512,
        seed: int = 1234,
        corpus: str | None = None,
        pairs_per_batch: NonNegativeInt = 256,
        item_pairs: ItemPairSettings = ItemPairSettings(),
    ) -> None:
        super().__init__(num_workers=0)  # the vectors are in memory
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}, expected 1 or more.")
        self.corpus_folder = None if corpus is None else Path(corpus)
        self.batch_size, self.seed, self.pairs_per_batch = batch_size, seed, pairs_per_batch
        self.item_pairs = item_pairs
        self._loaded: Corpus | None = None

    @property
    def corpus(self) -> Corpus | None:
        """Corpus of the items, loaded on first access; None without a folder."""
        if self._loaded is None and self.corpus_folder is not None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def made_from(self) -> Path:
        """Corpus directory, or the bundle if there is no corpus."""
        return self.corpus_folder or Path(self._trainer().lightning_module.origin)

    def ranks(self) -> tuple[int, int]:
        """Return rank and world size of the trainer, which may train in one process of several."""
        return self._trainer().global_rank, self._trainer().world_size

    def lay_out(self, rank: int, world_size: int) -> VectorBatches:
        """Return the training batches of a rank."""
        return VectorBatches(
            vectors=self._vectors(),
            batch_size=self.batch_size,
            pairs=self._pairs(),
            pairs_per_batch=self.pairs_per_batch,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
        )

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that determine the batches."""
        batches = self.batches
        return {
            "corpus": self._trainer().lightning_module.fingerprint,
            "num_items": len(batches.vectors),
            "num_pairs": len(batches.pairs or ()),
            "batch_size": batches.batch_size,
            "pairs_per_batch": batches.pairs_per_batch,
            "world_size": batches.world_size,
            "seed": batches.seed,
        }

    def _vectors(self) -> Tensor:
        vectors: Tensor = self._trainer().lightning_module.vectors
        return vectors

    def _pairs(self) -> ItemItemPairs | None:
        if not self._trainer().lightning_module.needs_pairs:
            return None
        corpus = self.corpus
        if corpus is None or self.pairs_per_batch < 1:
            raise ConfigError(
                "model.collaborative_weight needs pairs of items: give data.corpus and "
                "data.pairs_per_batch, or set it to 0."
            )
        fingerprint = self._trainer().lightning_module.fingerprint
        if corpus.fingerprint != fingerprint:
            raise DataError(
                f"{self.corpus_folder} has fingerprint {corpus.fingerprint[:12]}, the vectors "
                f"{fingerprint[:12]}; give the corpus that was encoded."
            )
        train = corpus.train_interactions()
        check_train_only(corpus, train, "item-item pairs")
        chosen = self.item_pairs
        return item_item_pairs(
            train,
            window=chosen.window_size,
            cap=chosen.max_anchors_per_user,
            weighting=chosen.weighting,
        )

    def _trainer(self) -> Any:  # noqa: ANN401 (Lightning's)
        if self.trainer is None:
            raise AssertionError("VectorDataModule works inside a Trainer")
        return self.trainer
