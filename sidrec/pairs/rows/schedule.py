"""Which rows batch k of rank r holds when there is one kind of rows: a pure function."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sidrec.errors import ConfigError
from sidrec.pairs.permutation import key_of, permute


@dataclass(frozen=True, slots=True)
class RowSchedule:
    """Everything that decides an epoch's batches, for all ranks.

    Every row is seen in every epoch. Ranks hold neighboring slices of one global batch; what the
    last one lacks is filled up with the first rows of the same shuffle, so that all batches of
    all ranks have the same size.

    Attributes:
        num_rows: Rows to show.
        batch_size: Rows per rank.
        world_size: Number of ranks.
        seed: Chooses the shuffles.

    Raises:
        ConfigError: If there is no row, or a setting is out of range.
    """

    num_rows: int
    batch_size: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1:
            raise ConfigError(
                f"batch_size {self.batch_size} with {self.world_size} ranks; both must be 1 or more"
            )
        if self.num_rows < 1:
            raise ConfigError("Nothing to train on: no user has train interactions.")

    def __len__(self) -> int:
        return math.ceil(self.num_rows / (self.batch_size * self.world_size))

    def rows(self, step: int, *, epoch: int, rank: int) -> Int64[np.ndarray, " row"]:
        """Return the rows of batch ``step`` of ``epoch`` for ``rank``.

        Raises:
            IndexError: If ``step`` or ``rank`` is out of range.
        """
        if not (0 <= step < len(self) and 0 <= rank < self.world_size):
            raise IndexError(f"step {step} of {len(self)}, rank {rank} of {self.world_size}")
        first = (step * self.world_size + rank) * self.batch_size
        places = np.arange(first, first + self.batch_size, dtype=np.int64) % self.num_rows
        return permute(places, size=self.num_rows, key=key_of(self.seed, epoch, "shuffle"))
