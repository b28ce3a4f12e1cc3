"""Row schedule and data module for training data of one kind of rows."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from sidrec.errors import ConfigError
from sidrec.training.counter_rng import key_of, permute
from sidrec.training.numbered_batches import BatchNumber
from sidrec.training.resumable_data import CorpusDataModule


@dataclass(frozen=True, slots=True)
class RowSchedule:
    """Schedule of an epoch's batches, for all ranks.

    Every epoch contains every row. Ranks share one global batch. The first rows of the same
    shuffle complete the last global batch, so that all batches of all ranks have the same size.

    Attributes:
        num_rows: Number of rows.
        batch_size: Rows per rank.
        world_size: Number of ranks.
        seed: Seed of the shuffles.
        lengths: Length of each row, in any unit: the rows of neighboring global batches are sorted
            by it, to save padding; None keeps the shuffled order.
        pool_batches: Global batches that are sorted together, and then shuffled.

    Raises:
        ConfigError: If there are no rows, or a setting is out of range.
    """

    num_rows: int
    batch_size: int
    world_size: int
    seed: int
    lengths: Int64[np.ndarray, " row"] | None = field(default=None, compare=False, repr=False)
    pool_batches: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1:
            raise ConfigError(
                f"batch_size {self.batch_size} with {self.world_size} ranks; both must be at least "
                "1."
            )
        if self.num_rows < 1:
            raise ConfigError("No user has train interactions to train on; check the corpus.")

    def __len__(self) -> int:
        return math.ceil(self.num_rows / (self.batch_size * self.world_size))

    def rows(self, step: int, *, epoch: int, rank: int) -> Int64[np.ndarray, " row"]:
        """Return the rows of batch ``step`` of ``epoch`` for ``rank``.

        Raises:
            IndexError: If ``step`` or ``rank`` is out of range.
        """
        if not (0 <= step < len(self) and 0 <= rank < self.world_size):
            raise IndexError(f"step {step} of {len(self)}, rank {rank} of {self.world_size}")
        if self.lengths is None:
            first = (step * self.world_size + rank) * self.batch_size
            return self._shuffled(first, first + self.batch_size, epoch)
        together, pool = self.batch_size * self.world_size, step // self.pool_batches
        first = pool * self.pool_batches
        count = min(self.pool_batches, len(self) - first)
        rows = self._shuffled(first * together, (first + count) * together, epoch)
        batches = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(count, together)
        key = key_of(self.seed, epoch, "order", pool)
        place = permute(np.array([step - first], np.int64), size=count, key=key)
        own: Int64[np.ndarray, " row"] = batches[int(place[0]), rank :: self.world_size]
        return own

    def _shuffled(self, first: int, end: int, epoch: int) -> Int64[np.ndarray, " row"]:
        places = np.arange(first, end, dtype=np.int64) % self.num_rows
        return permute(places, size=self.num_rows, key=key_of(self.seed, epoch, "shuffle"))


Batch = TypeVar("Batch", covariant=True)


@runtime_checkable
class RowBatches(Protocol[Batch]):
    """Dataset of batches by number, for one rank, as a loader takes it."""

    @property
    def schedule(self) -> RowSchedule:
        """Schedule that decides the rows of a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: BatchNumber) -> Batch: ...


class RowDataModule(CorpusDataModule[RowBatches[Batch]], Generic[Batch]):
    """Data module over rows of one corpus; validation and test take one step each.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Rows per rank.
        seed: Seed of shuffles and dropout.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, corpus: str, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(corpus, num_workers)
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def lay_out(self, rank: int, world_size: int) -> RowBatches[Batch]:
        """Return the training batches of a rank."""

    def other_settings(self) -> dict[str, Any]:
        """Return the settings other than seed and sizes that decide the batches; plain types."""
        return {}

    def val_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split, in which the model ranks the whole catalogue."""
        return DataLoader(["valid"], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split."""
        return DataLoader(["test"], batch_size=None)  # type: ignore[arg-type]

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that decide the batches and the ``corpus`` fingerprint."""
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": schedule.num_rows,
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "seed": schedule.seed,
            **self.other_settings(),
        }
