"""Vectors of a large catalogue in a file that every rank writes into and then maps."""

import atexit
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects, on_one_host, rank_and_world_size, wait_for_all_ranks
from sidrec.errors import SidrecError


class SharedVectors:
    """Float32 rows in one file that all ranks write and then map into memory.

    The kernel writes pages out and drops them whenever it needs the room, so the rows take disk
    and not memory. All ranks make one together. On one host the file has no name once all have
    opened it: it is gone when nobody uses it, whatever happens. Hosts that share a network disk
    write bytes, not pages (a page may hold rows of two ranks), and open the file anew by its name
    before they read what others wrote; the name goes when rank 0 ends.

    Args:
        folder: On a disk that all ranks share, with room for all rows.
        num_rows: Of all ranks together.
        dim: Width of a row.

    Raises:
        SidrecError: On every rank, if the disk is full or ranks do not see the same folder.
    """

    def __init__(self, folder: Path, num_rows: int, dim: int) -> None:
        rank, _ = rank_and_world_size()
        name = gather_objects(f"vectors-{uuid.uuid4().hex}.part")[0]
        self._file, self._shape = folder / name, (num_rows, dim)
        size = num_rows * dim * 4
        full = _reserve(self._file, size) if rank == 0 else None
        problem = gather_objects(full)[0] or self._open()
        problems = [one for one in gather_objects(problem) if one is not None]
        self._one_host = on_one_host()
        if rank == 0 and (problems or self._one_host):
            self._file.unlink(missing_ok=True)
        elif rank == 0:
            atexit.register(self._file.unlink, missing_ok=True)
        if problems:
            raise SidrecError(
                f"{folder} cannot hold {size / 2**30:.1f} GiB of item embeddings for all ranks "
                f"({problems[0]}); free space, or put the corpus on a disk that all of them see."
            )

    def write(self, first: int, rows: Float[Tensor, "row dim"]) -> None:
        """Put rows in their place, from row ``first`` on."""
        data = rows.contiguous().numpy().data.cast("B")
        place = first * self._shape[1] * 4
        while data:  # the system may take only a part of it
            written = os.pwrite(self._stream.fileno(), data, place)
            data, place = data[written:], place + written

    def all(self) -> Float[Tensor, "all_rows dim"]:
        """Return all rows once every rank has written its own."""
        os.fsync(self._stream.fileno())
        wait_for_all_ranks()
        if not self._one_host:
            self._stream.close()
            self._open()
        with self._stream:
            mapped = np.memmap(self._stream, np.float32, "c", shape=self._shape)
        return torch.from_numpy(mapped)

    def _open(self) -> str | None:
        """Open the file by its name; return what is wrong."""
        try:
            self._stream = self._file.open("r+b", buffering=0)
        except OSError as error:
            return error.strerror
        return None


def _reserve(file: Path, size: int) -> str | None:
    """Make a file of that size, its blocks taken now; return what is wrong."""
    try:
        with file.open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        return error.strerror
    return None
