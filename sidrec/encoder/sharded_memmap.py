"""Shared vectors of a large catalogue: one file that every rank writes and then maps."""

import atexit
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects, on_one_host, rank_and_world_size
from sidrec.errors import SidrecError

_ROWS_TOGETHER = 16_384  # times 4 bytes is whole pages on any processor, for any width


class SharedVectors:
    """Float32 rows in one file that all ranks write and then map into memory.

    The operating system writes pages out and drops them when it needs memory, so the rows take disk
    and not memory. All ranks create the object together, and only one is in use at a time. On one
    host the file is unlinked once all ranks have opened it, so the system frees it after its last
    use, even after a crash.

    Hosts that share a network disk open the file anew by its name before they read what others
    wrote. No page has rows of two ranks, since a network disk may write whole pages back. The next
    such file or the exit of rank 0 removes the file; if rank 0 is killed, the file remains.

    Args:
        folder: Folder on a disk that all ranks share, with room for all rows.
        num_rows: Rows of all ranks together.
        dim: Width of a row.

    Raises:
        SidrecError: On every rank, if the disk is full or ranks do not see the same folder.
    """

    _named: Path | None = None

    def __init__(self, folder: Path, num_rows: int, dim: int) -> None:
        rank, _ = rank_and_world_size()
        name = gather_objects(f"vectors-{uuid.uuid4().hex}.part")[0]
        self._file, self._shape = folder / name, (num_rows, dim)
        self._problem = gather_objects(self._reserve() if rank == 0 else None)[0] or self._open()
        self._one_host = on_one_host()
        if rank == 0:
            self._forget_the_one_before()
        self._raise_together()
        if rank == 0 and not self._one_host:
            SharedVectors._named = self._file
            atexit.register(self._file.unlink, missing_ok=True)
        elif rank == 0:
            self._file.unlink()

    def share(self) -> tuple[int, int]:
        """Return the first row that this rank writes, and the row after its last one."""
        rank, world_size = rank_and_world_size()
        return share_of_rank(self._shape[0], rank, world_size)

    def write(self, first: int, rows: Float[Tensor, "row dim"]) -> None:
        """Write rows from row ``first`` on; ``all`` raises if that failed."""
        data = rows.contiguous().numpy().data.cast("B")
        place = first * self._shape[1] * 4
        try:
            while data:  # the system may write only a part of it
                written = os.pwrite(self._stream.fileno(), data, place)
                data, place = data[written:], place + written
        except OSError as error:
            self._problem = error.strerror

    def all(self) -> Float[Tensor, "all_rows dim"]:
        """Return all rows once every rank has written its own.

        Raises:
            SidrecError: On every rank, if one could not write.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._problem = self._problem or error.strerror
        self._raise_together()
        if not self._one_host:
            self._stream.close()
            self._problem = self._open()
            self._raise_together()
        with self._stream:
            mapped = np.memmap(self._stream, np.float32, "c", shape=self._shape)
        return torch.from_numpy(mapped)

    def _reserve(self) -> str | None:
        """Create the file and allocate its blocks; return the problem, or None."""
        try:
            with self._file.open("xb") as stream:
                os.posix_fallocate(stream.fileno(), 0, self._size)
        except OSError as error:
            return error.strerror
        return None

    def _open(self) -> str | None:
        """Open the file by its name; return the problem, or None."""
        try:
            self._stream = self._file.open("r+b", buffering=0)
        except OSError as error:
            return error.strerror
        return None

    @property
    def _size(self) -> int:
        return self._shape[0] * self._shape[1] * 4

    def _raise_together(self) -> None:
        """Wait for all ranks; raise on each of them if one has a problem."""
        problems = [one for one in gather_objects(self._problem) if one is not None]
        if not problems:
            return
        if rank_and_world_size()[0] == 0:
            self._file.unlink(missing_ok=True)
        raise SidrecError(
            f"{self._file.parent} cannot hold {self._size / 2**30:.1f} GiB of item embeddings for "
            f"all ranks ({problems[0]}); free space, or put the corpus on a disk that all ranks "
            "share."
        )

    @classmethod
    def _forget_the_one_before(cls) -> None:
        if cls._named is not None:
            cls._named.unlink(missing_ok=True)
        cls._named = None


def share_of_rank(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the row range of a rank; no memory page holds rows of two ranks.

    >>> [share_of_rank(100_000, rank, 3) for rank in range(3)]
    [(0, 32768), (32768, 65536), (65536, 100000)]
    """
    first, end = (num_rows * r // world_size for r in (rank, rank + 1))
    first -= first % _ROWS_TOGETHER
    return first, num_rows if rank == world_size - 1 else end - end % _ROWS_TOGETHER
