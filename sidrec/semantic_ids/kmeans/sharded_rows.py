"""Rows of one k-means problem: read in fixed chunks, sharded over ranks."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import gather_objects, gather_rows, rank_and_world_size, sum_over_ranks
from sidrec.errors import DataError


def training_block(
    vectors: Float[Tensor, "item dim"], *, num_rows: int | None, seed: int
) -> Float[Tensor, "row dim"]:
    """Return this rank's block of ``num_rows`` rows of all ranks, drawn without replacement.

    Collective. The rows and their order do not depend on the number of ranks. Where the ranks hold
    no more than ``num_rows``, or it is None, the block is ``vectors`` itself, not copied.
    """
    counts: list[int] = gather_objects(len(vectors))
    if num_rows is None or sum(counts) <= num_rows:
        return vectors
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sum(counts), generator=generator)[:num_rows].sort().values
    chosen -= sum(counts[: rank_and_world_size()[0]])
    own = chosen[(chosen >= 0) & (chosen < len(vectors))]
    rows = gather_rows(vectors[own.to(vectors.device)].float())
    start, stop = block_of_rank(len(rows))
    return rows[start:stop]


CHUNK_ROWS = 4096
_MOST_CHUNK_ROWS = 1 << 16
_CACHE_BYTES = 1 << 30

Chunk = Float[Tensor, "row dim"]


def gpu_chunk_rows(num_rows: int) -> int:
    """Return how many rows a GPU reads at once: ``CHUNK_ROWS`` times a power of two.

    A small chunk costs a GPU more to launch than to compute. There are 16 chunks or more, for as
    many ranks, of at most 65,536 rows.
    """
    size = CHUNK_ROWS
    while size < _MOST_CHUNK_ROWS and 32 * size <= num_rows:
        size *= 2
    return size


def block_of_rank(num_rows: int) -> tuple[int, int]:
    """Return ``(start, stop)``: the rows that this rank works on.

    Blocks are cut at multiples of ``gpu_chunk_rows``, so that every chunk holds the same rows, and
    every matrix product the same bits, whatever the number of ranks.
    """
    rank, world_size = rank_and_world_size()
    size = gpu_chunk_rows(num_rows)
    num_chunks = -(-num_rows // size)
    cuts = [num_chunks * r // world_size * size for r in (rank, rank + 1)]
    return min(cuts[0], num_rows), min(cuts[1], num_rows)


class ShardedRows:
    """This rank's block of rows and the size of the whole.

    Up to 1 GiB a rank (on a GPU, half of the memory that is free) the rows are read once and kept;
    larger blocks are read again in every pass, so that a memory-mapped file larger than memory can
    be clustered.

    Args:
        read: ``read(start, stop)`` returns rows of the block as float32, always the same.
        num_local: Rows of this rank's block; a multiple of ``chunk_rows`` on all ranks but the last
            one that holds any.
        dim: Width of a row.

    Attributes:
        num_rows: Rows of all ranks; this rank's begin at ``start``.
        chunk_rows: Rows of a chunk: ``CHUNK_ROWS``, or ``gpu_chunk_rows`` of all rows.
        largest: Largest magnitude of all ranks' numbers, the scale of ``exact_sum_quantum``.

    Raises:
        ValueError: If the blocks were not cut by ``block_of_rank``.
    """

    def __init__(self, read: Callable[[int, int], Chunk], num_local: int, dim: int) -> None:
        self._read, self.num_local, self.dim = read, num_local, dim
        counts: list[int] = gather_objects(num_local)
        rank, _ = rank_and_world_size()
        self.start, self.num_rows = sum(counts[:rank]), sum(counts)
        device = read(0, 0).device
        on_gpu = device.type == "cuda"
        self.chunk_rows = gpu_chunk_rows(self.num_rows) if on_gpu else CHUNK_ROWS
        _check_blocks(counts, self.chunk_rows)
        self._cache: list[Tensor] | None = None
        room = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else _CACHE_BYTES
        if num_local * dim * 4 <= room:
            self._cache = [read(a, b) for a, b in self._cuts()]
        largest = max((_magnitude(chunk) for chunk in self.chunks()), default=0.0)
        self.largest: float = max(gather_objects(largest))

    def chunks(self) -> Iterator[Chunk]:
        """Yield the block's rows in order, ``chunk_rows`` at a time."""
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
        for number in sorted(set((local // self.chunk_rows).tolist())):
            chunk, here = self._chunk(number), local // self.chunk_rows == number
            inside = (local[here] - number * self.chunk_rows).to(chunk.device)
            taken[here.to(chunk.device)] = chunk[inside]
        return gather_rows(taken)

    def _cuts(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.num_local, self.chunk_rows):
            yield start, min(start + self.chunk_rows, self.num_local)

    def _chunk(self, number: int) -> Tensor:
        if self._cache is not None:
            return self._cache[number]
        start = number * self.chunk_rows
        return self._read(start, min(start + self.chunk_rows, self.num_local))


def exact_sum_quantum(largest: float, bits: int) -> float:
    """Return the power of two of which ``largest`` holds about ``2 ** bits``."""
    if largest == 0:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1] - bits, -120))


def _magnitude(chunk: Tensor) -> float:
    least, most = chunk.aminmax()
    return max(abs(least.item()), abs(most.item()))


def _check_blocks(counts: list[int], chunk_rows: int) -> None:
    *before, _ = [n for n in counts if n] or [0]
    if any(n % chunk_rows for n in before):
        raise ValueError(
            f"ranks hold {counts} rows, expected multiples of {chunk_rows} on all but the last; "
            "cut them with block_of_rank."
        )


_LARGE_OFFSET = 1e3  # squared mean over squared deviation; float32 then errs by 1e-4 of a distance


def count_checked_rows(vectors: Float[Tensor, "row dim"]) -> int:
    """Return the number of rows of all ranks; collective, so all ranks raise or none does.

    Raises:
        DataError: If no rank holds a row, or a value is not finite (names rows of the whole).
    """
    bad = [start + row for start, chunk in _chunks(vectors) for row in _not_finite(chunk)]
    facts: list[tuple[int, list[int]]] = gather_objects((len(vectors), bad))
    total, named = 0, []
    for num_rows, rows in facts:
        named += [total + row for row in rows]
        total += num_rows
    _refuse(named)
    if total == 0:
        raise DataError("There are no vectors to fit; give a catalogue with items.")
    return total


def rows_to_fit(vectors: Float[Tensor, "row dim"]) -> ShardedRows:
    """Return this rank's block (cut by ``block_of_rank``) as checked rows; collective.

    Raises:
        DataError: If no rank holds a row, or a value is not finite (names rows of the whole).
    """
    count_checked_rows(vectors)
    return ShardedRows(lambda a, b: vectors[a:b].float(), len(vectors), vectors.shape[1])


def chunks_of(
    vectors: Float[Tensor, "row _"], *, dim: int, device: torch.device
) -> Iterator[tuple[slice, Float[Tensor, "chunk dim"]]]:
    """Yield the slice of each chunk and its rows, float32 on ``device``.

    Raises:
        DataError: If the width is not ``dim``, or a value is not finite (names rows).
    """
    if vectors.shape[1] != dim:
        raise DataError(
            f"Vectors have {vectors.shape[1]} dimensions but the codebooks {dim}; "
            "use the encoder that the codebooks were fitted on."
        )
    for start, part in _chunks(vectors):
        chunk = part.to(device, torch.float32)
        _refuse([start + row for row in _not_finite(chunk)])
        yield slice(start, start + len(chunk)), chunk


def exact_mean(rows: ShardedRows) -> Float[Tensor, " dim"]:
    """Return the mean row of all ranks; the same bits for any number of ranks."""
    device = rows.take(torch.zeros(0, dtype=torch.int64)).device
    total = torch.zeros(rows.dim, dtype=torch.float64, device=device)
    for chunk in rows.chunks():
        total += chunk.sum(dim=0, dtype=torch.float64)
    return (sum_over_ranks(total) / rows.num_rows).float()


def common_offset(vectors: Float[Tensor, "row dim"]) -> Float[Tensor, " dim"] | None:
    """Return the mean of the first rows if it far exceeds their deviation from it, else None.

    Float32 products of such rows lose the distances between them, so subtract the mean first.
    Collective; the same bits for any number of ranks.
    """
    own = None
    chunk = vectors[:CHUNK_ROWS].double()
    if len(chunk):
        mean = chunk.mean(dim=0)
        deviation = (chunk - mean).square().sum(dim=1).mean()
        is_large = bool(mean.square().sum() > _LARGE_OFFSET * deviation > 0)
        own = (is_large, mean.float().cpu())
    found: list[tuple[bool, Tensor] | None] = gather_objects(own)
    is_large, mean = next(one for one in found if one is not None)
    return mean.to(vectors.device) if is_large else None


def _chunks(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(vectors), CHUNK_ROWS):
        yield start, vectors[start : start + CHUNK_ROWS]


def _not_finite(chunk: Tensor) -> list[int]:
    rows: list[int] = (~torch.isfinite(chunk).all(dim=1)).nonzero().flatten().tolist()
    return rows


def _refuse(rows: list[int]) -> None:
    if rows:
        raise DataError(
            f"{len(rows)} vectors hold NaN or infinity (first rows: {rows[:5]}); "
            "remove those items or encode them again."
        )
