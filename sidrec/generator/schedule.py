"""Which examples batch k of rank r holds: a pure function that also keeps lengths together."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sidrec.errors import ConfigError
from sidrec.pairs.permutation import key_of, permute
from sidrec.types import TASKS, Task


class ScheduledExamples(NamedTuple):
    """Task of a batch and the example rows of that task that it holds.

    Attributes:
        task: The same on every rank at the same step.
        rows: Row numbers of this rank, each in ``[0, num_rows[task])``.
        epoch: Epoch of the batch; whatever else is drawn for it is drawn from this number.
    """

    task: Task
    rows: Int64[np.ndarray, " example"]
    epoch: int


@dataclass(frozen=True, eq=False)
class BucketedSchedule:
    """Everything that decides an epoch's batches, for all ranks.

    An epoch shows the task that is largest for its share once; the other starts over, newly
    shuffled, until it has had its share of the steps. Rows are shuffled, then sorted by length inside pools of
    ``pool_batches`` global batches, and the batches of a pool are shuffled again: little padding,
    yet no order by length over the epoch.

    Attributes:
        lengths: Positions that each example takes, per task; empty switches a task off.
        mix: Share of the steps that search and recommendation get, any positive scale.
        batch_size: Examples per rank.
        world_size: Number of ranks.
        pool_batches: Global batches that are sorted together; 1 switches bucketing off.
        seed: Chooses the shuffles.

    Raises:
        ConfigError: If no task fills one global batch, or a setting is out of range.
    """

    lengths: tuple[Int64[np.ndarray, " search"], Int64[np.ndarray, " recommendation"]]
    mix: tuple[float, float]
    batch_size: int
    world_size: int
    pool_batches: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.batch_size, self.world_size, self.pool_batches) < 1:
            raise ConfigError(
                f"batch_size {self.batch_size} and pool_batches {self.pool_batches} "
                "must be 1 or more."
            )
        if min(self.mix) < 0 or max(self.mix) <= 0:
            raise ConfigError(f"The shares of search and recommendation are {self.mix}; one > 0.")
        for task, share, rows in zip(TASKS, self.mix, self.lengths, strict=True):
            if share and len(rows) < self._together:
                raise ConfigError(
                    f"{len(rows)} {task} examples do not fill one batch of {self.batch_size} × "
                    f"{self.world_size} ranks; lower data.batch_size or the task's share to 0."
                )

    @property
    def _together(self) -> int:
        return self.batch_size * self.world_size

    @property
    def num_batches(self) -> tuple[int, int]:
        """Global batches of search and of recommendation in an epoch."""
        full = [len(rows) // self._together for rows in self.lengths]
        scale = max(
            (count / share for count, share in zip(full, self.mix, strict=True) if share),
        )
        first, second = (round(scale * share) for share in self.mix)
        return first, second

    def __len__(self) -> int:
        return sum(self.num_batches)

    def batch(self, step: int, *, epoch: int, rank: int) -> ScheduledExamples:
        """Return batch ``step`` (in ``[0, len(self))``) of ``epoch`` for ``rank``."""
        before, after = self._search_batches_before(step), self._search_batches_before(step + 1)
        which = 0 if after > before else 1
        index = before if which == 0 else step - before
        per_pass = len(self.lengths[which]) // self._together
        lap, index = divmod(index, per_pass)
        pool, place = divmod(index, self.pool_batches)
        rows = self._pool(which, epoch, lap, pool)[place]  # [global batch], sorted by length
        return ScheduledExamples(TASKS[which], rows[rank :: self.world_size], epoch)

    def _search_batches_before(self, step: int) -> int:
        """Count search batches among the first ``step``; rises by 0 or 1 with each step."""
        total = len(self)
        return (step * self.num_batches[0] + total // 2) // total

    def _pool(self, which: int, epoch: int, lap: int, pool: int) -> Int64[np.ndarray, "batch row"]:
        return _sorted_pool(self, which, epoch, lap, pool)


@lru_cache(maxsize=4)
def _sorted_pool(
    schedule: BucketedSchedule, which: int, epoch: int, lap: int, pool: int
) -> Int64[np.ndarray, "batch row"]:
    lengths, together = schedule.lengths[which], schedule.batch_size * schedule.world_size
    per_pass = len(lengths) // together
    first = pool * schedule.pool_batches
    count = min(schedule.pool_batches, per_pass - first)
    key = key_of(schedule.seed, epoch, lap, "examples", TASKS[which])
    positions = np.arange(first * together, (first + count) * together, dtype=np.int64)
    rows = permute(positions, size=len(lengths), key=key)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(count, together)
    order = permute(np.arange(count, dtype=np.int64), size=count, key=key_of(key, "order", pool))
    return rows[order]
