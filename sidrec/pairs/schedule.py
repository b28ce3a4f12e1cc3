"""Pair schedule: task and rows of each batch, a pure function, so resume needs no state."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sidrec.errors import ConfigError
from sidrec.training.counter_rng import key_of, permute
from sidrec.types import TASKS, Task


def task_at(
    step: int, num_batches: tuple[int, int], *, rank: int, world_size: int
) -> tuple[int, int]:
    """Return the task of a step, 0 or 1, and the number of the batch among that task's batches.

    The batches of an epoch's two tasks are interleaved evenly.

    Raises:
        IndexError: If ``step`` or ``rank`` is out of range.
    """
    total = sum(num_batches)
    if not 0 <= step < total:
        raise IndexError(f"step {step} of an epoch of {total} steps")
    if not 0 <= rank < world_size:
        raise IndexError(f"rank {rank} of {world_size}")
    before, after = ((place * num_batches[0] + total // 2) // total for place in (step, step + 1))
    return (0, before) if after > before else (1, step - before)


class ScheduledBatch(NamedTuple):
    """Task of a batch and the rows of that task's pairs that it holds.

    Attributes:
        task: The same on every rank at the same step.
        rows: Row numbers of this rank, each in ``[0, num_rows[task])``.
    """

    task: Task
    rows: Int64[np.ndarray, " pair"]


@dataclass(frozen=True, slots=True)
class PairSchedule:
    """Pair schedule: everything that determines the batches of an epoch, for all ranks.

    The batches of the tasks are interleaved evenly. Ranks hold neighboring slices of one global
    batch, so the global batches are the same for any number of ranks with the same product
    ``batch_size * world_size``. Rows that do not fill a global batch are left out of the epoch.

    There are two other schedules: ``RowSchedule`` for one kind of rows, and the generator's
    ``BucketedSchedule``, which groups rows of similar length and repeats the scarcer task.

    Attributes:
        num_rows: Pairs of ``search`` and of ``recommendation``; 0 switches a task off.
        mix: Share of the batches that each task gets, any positive scale: the task that is scarcer
            for its share is used whole, the other one sampled. None takes every full batch of both.
        batch_size: Pairs per rank.
        world_size: Number of ranks.
        seed: Seed of the shuffles.

    Raises:
        ConfigError: If no task fills one global batch, or a setting is out of range.
    """

    num_rows: tuple[int, int]
    mix: tuple[float, float] | None
    batch_size: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1:
            raise ConfigError(
                f"batch_size {self.batch_size} with {self.world_size} ranks; both must be at least "
                "1."
            )
        for task, rows, batches in zip(TASKS, self.num_rows, self.num_full_batches, strict=True):
            if rows and not batches:
                raise ConfigError(
                    f"{rows} {task} pairs do not fill one batch of "
                    f"{self.batch_size} on {self.world_size} ranks; lower data.batch_size."
                )
        if not any(self.num_full_batches):
            raise ConfigError("No training pairs: both tasks are switched off or have no rows.")
        if self.mix is not None and min(self.mix) <= 0:
            raise ConfigError(f"The mix of tasks must be positive, got {self.mix}.")

    @property
    def num_full_batches(self) -> tuple[int, int]:
        """Global batches that each task can fill without using a row twice."""
        together = self.batch_size * self.world_size
        return self.num_rows[0] // together, self.num_rows[1] // together

    @property
    def num_batches(self) -> tuple[int, int]:
        """Global batches of each task in an epoch."""
        full = self.num_full_batches
        if self.mix is None or 0 in full:
            return full
        scale = min(full[0] / self.mix[0], full[1] / self.mix[1])
        first, second = (max(1, int(scale * share + 1e-9)) for share in self.mix)
        return min(first, full[0]), min(second, full[1])

    def __len__(self) -> int:
        return sum(self.num_batches)

    def batch(self, step: int, *, epoch: int, rank: int) -> ScheduledBatch:
        """Return batch ``step`` of ``epoch`` for ``rank``.

        Args:
            step: In ``[0, len(self))``.
            epoch: 0 or more; every epoch has its own shuffle.
            rank: In ``[0, world_size)``.

        Raises:
            IndexError: If ``step`` or ``rank`` is out of range.
        """
        which, index = task_at(step, self.num_batches, rank=rank, world_size=self.world_size)
        first = (index * self.world_size + rank) * self.batch_size
        rows = permute(
            np.arange(first, first + self.batch_size, dtype=np.int64),
            size=self.num_rows[which],
            key=key_of(self.seed, epoch, "shuffle", TASKS[which]),
        )
        return ScheduledBatch(TASKS[which], rows)
