"""The rows of one k-means problem: read in fixed chunks, spread over ranks."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import gather_objects, gather_rows, rank_and_world_size

CHUNK_ROWS = 4096
_CACHE_BYTES = 1 << 30

Chunk = Float[Tensor, "row dim"]


def block_of_rank(num_rows: int) -> tuple[int, int]:
    """Return ``(start, stop)``: the rows that this rank works on.

    Blocks are cut at multiples of ``CHUNK_ROWS``, so that every chunk holds the same rows, and
    every matrix product the same bits, whatever the number of ranks.
    """
    rank, world_size = rank_and_world_size()
    num_chunks = -(-num_rows // CHUNK_ROWS)
    cuts = [num_chunks * r // world_size * CHUNK_ROWS for r in (rank, rank + 1)]
    return min(cuts[0], num_rows), min(cuts[1], num_rows)


class Rows:
    """This rank's block of rows and the size of the whole.

    Up to 1 GiB a rank the rows are read once and kept; larger blocks are read again in every pass,
    so that a memory-mapped file larger than memory can be clustered.

    Args:
        read: ``read(start, stop)`` returns rows of the block as float32, always the same.
        num_local: Rows of this rank's block; a multiple of ``CHUNK_ROWS`` on all ranks but the
            last one that holds any.
        dim: Width of a row.

    Attributes:
        num_rows: Rows of all ranks; this rank's begin at ``start``.
        largest: Largest magnitude of all ranks' numbers, the scale of ``grid_unit``.

    Raises:
        ValueError: If the blocks were not cut by ``block_of_rank``.
    """

    def __init__(self, read: Callable[[int, int], Chunk], num_local: int, dim: int) -> None:
        self._read, self.num_local, self.dim = read, num_local, dim
        counts: list[int] = gather_objects(num_local)
        rank, _ = rank_and_world_size()
        self.start, self.num_rows = sum(counts[:rank]), sum(counts)
        _check_blocks(counts)
        self._cache: list[Tensor] | None = None
        if num_local * dim * 4 <= _CACHE_BYTES:
            self._cache = [read(a, b) for a, b in self._cuts()]
        largest = max((_magnitude(chunk) for chunk in self.chunks()), default=0.0)
        self.largest: float = max(gather_objects(largest))

    def chunks(self) -> Iterator[Chunk]:
        """Yield the block's rows in order, ``CHUNK_ROWS`` at a time."""
        if self._cache is not None:
            yield from self._cache
            return
        for start, stop in self._cuts():
            yield self._read(start, stop)

    def take(self, indices: Int[Tensor, " taken"]) -> Float[Tensor, "taken dim"]:
        """Return rows of all ranks by their number in the whole, in the order given.

        Every rank passes the same ``indices``, ascending.
        """
        local = indices.cpu() - self.start
        local = local[(local >= 0) & (local < self.num_local)]
        taken = self._read(0, 0).new_empty((len(local), self.dim), dtype=torch.float32)
        for number in sorted(set((local // CHUNK_ROWS).tolist())):
            chunk, here = self._chunk(number), local // CHUNK_ROWS == number
            inside = (local[here] - number * CHUNK_ROWS).to(chunk.device)
            taken[here.to(chunk.device)] = chunk[inside]
        return gather_rows(taken)

    def _cuts(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.num_local, CHUNK_ROWS):
            yield start, min(start + CHUNK_ROWS, self.num_local)

    def _chunk(self, number: int) -> Tensor:
        if self._cache is not None:
            return self._cache[number]
        start = number * CHUNK_ROWS
        return self._read(start, min(start + CHUNK_ROWS, self.num_local))


def grid_unit(largest: float, bits: int) -> float:
    """Return the power of two of which ``largest`` holds about ``2 ** bits``."""
    if largest == 0:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1] - bits, -120))


def _magnitude(chunk: Tensor) -> float:
    least, most = chunk.aminmax()
    return max(abs(least.item()), abs(most.item()))


def _check_blocks(counts: list[int]) -> None:
    *before, _ = [n for n in counts if n] or [0]
    if any(n % CHUNK_ROWS for n in before):
        raise ValueError(
            f"ranks hold {counts} rows, expected multiples of {CHUNK_ROWS} on all but the last; "
            "cut them with block_of_rank."
        )
