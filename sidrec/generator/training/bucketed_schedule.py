"""Schedule of training batches: a pure function of step, epoch and rank, bucketed by length."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sidrec.errors import ConfigError
from sidrec.pairs.schedule import task_at
from sidrec.training.counter_rng import key_of, permute
from sidrec.types import TASKS, Task

Rows = Int64[np.ndarray, " example"]
LengthOf = Callable[[Rows], Rows]


class ScheduledExamples(NamedTuple):
    """Task and example rows of one batch.

    Attributes:
        task: The same on every rank at the same step.
        rows: Row numbers of this rank, each in ``[0, num_rows[task])``.
        turn: Number of completed passes over the task's rows since training began; seeds all
            other draws for a row.
    """

    task: Task
    rows: Int64[np.ndarray, " example"]
    turn: int


@dataclass(frozen=True, eq=False)
class BucketedSchedule:
    """Batches of an epoch for all ranks, with rows of similar length together.

    An epoch passes once over the task with the most batches for its share; the other task
    repeats, shuffled anew, until it has its share of the steps. Rows are shuffled, sorted by
    length inside pools of ``pool_batches`` global batches, and the batches of a pool are shuffled
    again. This saves padding without ordering the epoch by length. The global batches are the
    same for any number of ranks with the same product ``batch_size * world_size``.

    Attributes:
        num_rows: Examples of search and of recommendation.
        length_of: Per task: function from rows to their lengths, in any unit; only the order
            matters.
        mix: Share of the steps per task, any positive scale; 0 switches a task off.
        batch_size: Examples per rank.
        world_size: Number of ranks.
        pool_batches: Global batches sorted together; 1 switches bucketing off.
        seed: Seed of the shuffles.

    Raises:
        ConfigError: If a task does not fill one global batch, or a setting is out of range.
    """

    num_rows: tuple[int, int]
    length_of: tuple[LengthOf, LengthOf]
    mix: tuple[float, float]
    batch_size: int
    world_size: int
    pool_batches: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.batch_size, self.world_size, self.pool_batches) < 1:
            raise ConfigError(
                f"data.batch_size and data.bucket_batches must be 1 or more, got {self.batch_size} "
                f"and {self.pool_batches} on {self.world_size} ranks."
            )
        if min(self.mix) < 0 or max(self.mix) <= 0:
            raise ConfigError(
                "data.tasks: search_share and recommendation_share must be 0 or more, one of them "
                f"above 0, got {self.mix[0]} and {self.mix[1]}."
            )
        for task, share, rows in zip(TASKS, self.mix, self.num_rows, strict=True):
            if share and rows < self._together:
                raise ConfigError(
                    f"{rows} {task} examples do not fill one batch of {self.batch_size} on "
                    f"{self.world_size} ranks; lower data.batch_size or set data.{task}_share to 0."
                )

    @property
    def num_full_batches(self) -> tuple[int, int]:
        """Global batches in one pass over each task."""
        return self.num_rows[0] // self._together, self.num_rows[1] // self._together

    @property
    def num_batches(self) -> tuple[int, int]:
        """Global batches of search and of recommendation in an epoch."""
        scale = max(
            count / share
            for count, share in zip(self.num_full_batches, self.mix, strict=True)
            if share
        )
        first, second = (max(1, round(scale * share)) if share else 0 for share in self.mix)
        return first, second

    def __len__(self) -> int:
        return sum(self.num_batches)

    def batch(self, step: int, *, epoch: int, rank: int) -> ScheduledExamples:
        """Return batch ``step`` of ``epoch`` for ``rank``.

        Args:
            step: In ``[0, len(self))``.
            epoch: 0 or more; every epoch has its own shuffles.
            rank: In ``[0, world_size)``.

        Raises:
            IndexError: If ``step`` or ``rank`` is out of range.
        """
        which, index = task_at(step, self.num_batches, rank=rank, world_size=self.world_size)
        per_turn = self.num_full_batches[which]
        turns_per_epoch = -(-self.num_batches[which] // per_turn)
        lap, index = divmod(index, per_turn)
        turn = epoch * turns_per_epoch + lap
        pool, place = divmod(index, self.pool_batches)
        rows = _sorted_pool(self, which, turn, pool)[place]  # [global batch], sorted by length
        return ScheduledExamples(TASKS[which], rows[rank :: self.world_size], turn)

    @property
    def _together(self) -> int:
        return self.batch_size * self.world_size


@lru_cache(maxsize=4)  # an epoch alternates between one pool of each task
def _sorted_pool(
    schedule: BucketedSchedule, which: int, turn: int, pool: int
) -> Int64[np.ndarray, "batch row"]:
    together = schedule.batch_size * schedule.world_size
    first = pool * schedule.pool_batches
    count = min(schedule.pool_batches, schedule.num_full_batches[which] - first)
    key = key_of(schedule.seed, turn, "examples", TASKS[which])
    positions = np.arange(first * together, (first + count) * together, dtype=np.int64)
    rows = permute(positions, size=schedule.num_rows[which], key=key)
    order = permute(np.arange(count, dtype=np.int64), size=count, key=key_of(key, "order", pool))
    by_length = np.argsort(schedule.length_of[which](rows), kind="stable")
    batches: Int64[np.ndarray, "batch row"] = rows[by_length].reshape(count, together)[order]
    return batches
