"""Vectors of a large catalogue in a file that every rank writes into and then maps."""

import os
import uuid
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects, rank_and_world_size, wait_for_all_ranks
from sidrec.errors import SidrecError


class SharedVectors:
    """Float32 rows in a memory-mapped file without a name: it is gone when nobody maps it.

    The kernel writes pages out and drops them whenever it needs the room, so the rows take disk
    and not memory. All ranks make one together.

    Args:
        folder: On a disk that all ranks share, with room for all rows.
        num_rows: Of all ranks together.
        dim: Width of a row.

    Raises:
        SidrecError: If the disk is full, or ranks do not see the same folder.
    """

    def __init__(self, folder: Path, num_rows: int, dim: int) -> None:
        rank, _ = rank_and_world_size()
        name = gather_objects(f"vectors-{uuid.uuid4().hex}.part")[0]
        file, size = folder / name, num_rows * dim * 4
        try:
            if rank == 0:
                _reserve(file, size)
            wait_for_all_ranks()
            with file.open("r+b") as stream:
                mapped = np.memmap(stream, np.float32, "r+", shape=(num_rows, dim))
        except OSError as error:
            raise SidrecError(
                f"{folder} cannot hold {size / 2**30:.1f} GiB of item embeddings for all ranks "
                f"({error.strerror}); free space, or put the corpus on a disk that all of them see."
            ) from None
        finally:
            wait_for_all_ranks()
            if rank == 0:
                file.unlink(missing_ok=True)
        self._vectors = torch.from_numpy(mapped)

    def rows(self, first: int, end: int) -> Float[Tensor, "row dim"]:
        """Return the place of some rows, to be written by one rank."""
        return self._vectors[first:end]

    def all(self) -> Float[Tensor, "all_rows dim"]:
        """Return all rows once every rank has written its own."""
        wait_for_all_ranks()
        return self._vectors


def _reserve(file: Path, size: int) -> None:
    """Make a file of that size, its blocks taken now: a full disk shows here, not as SIGBUS."""
    with file.open("xb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
