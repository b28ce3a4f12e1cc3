"""The rows of one k-means problem: read in fixed chunks, spread over ranks, summed exactly."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import gather_objects, gather_rows, rank_and_world_size

CHUNK_ROWS = 4096
_CACHE_BYTES = 1 << 30
_GRID_BITS = 23

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
    """This rank's block of rows, on a fixed-point grid, and the size of the whole.

    Each number is rounded to 24 significant bits below the largest magnitude of all rows, so that
    float64 sums of up to 2^29 rows are exact: their order, and with it the number of ranks and
    threads, cannot change a bit of the result.

    Args:
        read: ``read(start, stop)`` returns rows of the block as float32, always the same.
        num_local: Rows of this rank's block; a multiple of ``CHUNK_ROWS`` on all ranks but the
            last one that holds any.
        dim: Width of a row.

    Raises:
        ValueError: If the blocks were not cut by ``block_of_rank``.
    """

    def __init__(self, read: Callable[[int, int], Chunk], num_local: int, dim: int) -> None:
        self._read, self.num_local, self.dim = read, num_local, dim
        counts: list[int] = gather_objects(num_local)
        rank, _ = rank_and_world_size()
        self.start, self.num_rows = sum(counts[:rank]), sum(counts)
        _check_blocks(counts)
        largest = max((read(a, b).abs().max().item() for a, b in self._cuts()), default=0.0)
        self.largest: float = max(gather_objects(largest))
        self._unit = grid_unit(self.largest, _GRID_BITS)
        self._cache: list[Tensor] | None = None
        if num_local * dim * 4 <= _CACHE_BYTES:
            self._cache = [self._rounded(a, b) for a, b in self._cuts()]

    def chunks(self) -> Iterator[Chunk]:
        """Yield the block's rows in order, ``CHUNK_ROWS`` at a time."""
        if self._cache is not None:
            yield from self._cache
            return
        for start, stop in self._cuts():
            yield self._rounded(start, stop)

    def take(self, indices: Int[Tensor, " taken"]) -> Float[Tensor, "taken dim"]:
        """Return rows of all ranks by their number in the whole, in the order given.

        Every rank passes the same ``indices``, ascending.
        """
        local = indices.cpu() - self.start
        local = local[(local >= 0) & (local < self.num_local)]
        parts = []
        for number, chunk in enumerate(self.chunks()):
            inside = local[local // CHUNK_ROWS == number] - number * CHUNK_ROWS
            parts.append(chunk[inside.to(chunk.device)])
        empty = self._read(0, 0).float()
        return gather_rows(torch.cat([empty, *parts]))

    def _cuts(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.num_local, CHUNK_ROWS):
            yield start, min(start + CHUNK_ROWS, self.num_local)

    def _rounded(self, start: int, stop: int) -> Tensor:
        return (self._read(start, stop) / self._unit).round_().mul_(self._unit)


def grid_unit(largest: float, bits: int) -> float:
    """Return the power of two of which ``largest`` holds about ``2 ** bits``."""
    if largest == 0:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1] - bits, -120))


def _check_blocks(counts: list[int]) -> None:
    *before, _ = [n for n in counts if n] or [0]
    if any(n % CHUNK_ROWS for n in before):
        raise ValueError(
            f"ranks hold {counts} rows, expected multiples of {CHUNK_ROWS} on all but the last; "
            "cut them with block_of_rank."
        )
