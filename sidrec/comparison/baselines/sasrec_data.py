"""Training windows over user histories, with the next item of each position as target."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from sidrec.corpus.leakage import check_train_only
from sidrec.errors import ConfigError
from sidrec.settings import PositiveInt
from sidrec.training.numbered_batches import BatchNumber
from sidrec.training.row_data import RowDataModule, RowSchedule

_LENGTH_STEP = 4


class WindowBatch(NamedTuple):
    """Batch of history windows.

    Attributes:
        histories: item_index, oldest first; -1 pads at the end.
        targets: item_index that follows each position; -1 on padding.
        mean_targets: Mean number of targets of the epoch's batches, of which this is one.
    """

    histories: Int[Tensor, "user place"]
    targets: Int[Tensor, "user place"]
    mean_targets: float


def windows_of(
    user_starts: Int64[np.ndarray, " bound"], *, max_history_items: int
) -> tuple[Int64[np.ndarray, " window"], Int64[np.ndarray, " window"]]:
    """Cut every user's rows into windows so that each item but the first is a target once.

    Args:
        user_starts: Rows of user ``u`` are ``[user_starts[u], user_starts[u + 1])``.
        max_history_items: Inputs per window; a window holds one more item, the last target.

    Returns:
        First row of each window, and the row after its last one. The windows of a user run from
        newest to oldest; only the oldest may be shorter.

    >>> first, end = windows_of(np.array([0, 6, 7]), max_history_items=3)
    >>> list(zip(first.tolist(), end.tolist()))
    [(2, 6), (0, 3)]
    """
    num_targets = np.maximum(np.diff(user_starts) - 1, 0)
    num_windows = -(-num_targets // max_history_items)
    users = np.repeat(np.arange(len(num_windows)), num_windows)
    turn = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    end = user_starts[users + 1] - turn * max_history_items
    return np.maximum(user_starts[users], end - max_history_items - 1), end


def padded(
    rows: Sequence[Int64[np.ndarray, " _"]], *, at_most: int, step: int = _LENGTH_STEP
) -> Int[Tensor, "user place"]:
    """Stack histories of different lengths; -1 pads at the end.

    Args:
        rows: Histories of up to ``at_most`` items.
        at_most: Largest width.
        step: Other widths are multiples of it, so that few different shapes occur: oneDNN keeps a
            compiled primitive for each shape of a bf16 operation.
    """
    longest = max(1, *map(len, rows))
    table = np.full((len(rows), min(-(-longest // step) * step, at_most)), -1, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return torch.from_numpy(table)


@dataclass(frozen=True)
class WindowBatches(Dataset[WindowBatch]):
    """Dataset of training batches by number, for one rank.

    Attributes:
        schedule: Windows of each batch.
        rank: Rank of this process.
        first: First row of each window.
        end: Row after the last one of each window.
        items: item_index of each row.
        max_history_items: Largest number of inputs of a window.
    """

    schedule: RowSchedule
    rank: int
    first: Int64[np.ndarray, " window"]
    end: Int64[np.ndarray, " window"]
    items: Int64[np.ndarray, " row"]
    max_history_items: int

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, number: BatchNumber) -> WindowBatch:
        rows = self.schedule.rows(number.step, epoch=number.epoch, rank=self.rank)
        windows = [self.items[self.first[row] : self.end[row]] for row in rows]
        return WindowBatch(
            padded([window[:-1] for window in windows], at_most=self.max_history_items),
            padded([window[1:] for window in windows], at_most=self.max_history_items),
            self.mean_targets,
        )

    @cached_property
    def mean_targets(self) -> float:
        """Mean number of targets of a batch of this rank."""
        return float((self.end - self.first - 1).mean()) * self.schedule.batch_size


class WindowDataModule(RowDataModule[WindowBatch]):
    """Data module over one corpus; each train interaction but a user's first is a target once.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Windows per rank.
        max_history_items: Items of a window that the model reads.
        bucket_batches: Batches sorted by length together; 1 switches bucketing off.
        seed: Seed of shuffles and dropout.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(
        self,
        corpus: str,
        *,
        batch_size: PositiveInt = 128,
        max_history_items: PositiveInt = 50,
        bucket_batches: PositiveInt = 20,
        seed: int = 1234,
        num_workers: int = 0,
    ) -> None:
        super().__init__(corpus, batch_size, seed, num_workers)
        if max_history_items < 1:
            raise ConfigError(f"data.max_history_items must be 1 or more, got {max_history_items}.")
        self.max_history_items, self.bucket_batches = max_history_items, bucket_batches

    def lay_out(self, rank: int, world_size: int) -> WindowBatches:
        """Return the training batches of a rank."""
        train = self.corpus.train_interactions()
        check_train_only(self.corpus, train, "SASRec")
        starts = np.asarray(train.user_starts, np.int64)
        first, end = windows_of(starts, max_history_items=self.max_history_items)
        schedule = RowSchedule(
            len(first),
            self.batch_size,
            world_size,
            self.seed,
            lengths=end - first if self.bucket_batches > 1 else None,
            pool_batches=self.bucket_batches,
        )
        items = np.asarray(train.item_index, np.int64)
        return WindowBatches(schedule, rank, first, end, items, self.max_history_items)

    def other_settings(self) -> dict[str, Any]:
        """Return the settings other than seed and sizes that decide the batches."""
        return {
            "max_history_items": self.max_history_items,
            "bucket_batches": self.bucket_batches,
        }
