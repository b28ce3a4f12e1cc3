"""k-means by Lloyd's iterations with repair of empty codes; rows may be sharded over ranks."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero, gather_rows, sum_over_ranks
from sidrec.kernels.nearest import (
    Rounding,
    bf16_prefilter,
    nearest_float32,
    prefilter_of,
    prefilter_pays,
    rounding_of,
)
from sidrec.semantic_ids.kmeans.sharded_rows import (
    ShardedRows,
    block_of_rank,
    exact_sum_quantum,
)

GRID_BITS = 34  # a chunk's sum keeps as many bits; float64 then adds 2^18 chunks without error
_MAX_DOUBT_FRACTION = 0.4  # with more uncertain rows, float32 products alone are faster


class KMeans(NamedTuple):
    """Result of one run.

    Attributes:
        centroids: float32.
        objectives: Mean squared distance of a row to its nearest centroid, once per iteration,
            before that iteration moved the centroids; never rises.
    """

    centroids: Float[Tensor, "code dim"]
    objectives: list[float]


class _Kept(NamedTuple):
    """State of this rank's rows between iterations, allocated before the first."""

    codes: Tensor  # [local row] int16
    rounding: Rounding  # [local row] each


class _Pass(NamedTuple):
    sums: Tensor  # [code, dim] float64, exact
    counts: Tensor  # [code] int64
    num_in_doubt: int


def k_means(
    rows: ShardedRows,
    initial: Float[Tensor, "code dim"],
    *,
    num_iterations: int,
    tolerance: float,
) -> KMeans:
    """Improve ``initial`` by Lloyd's iterations over the rows of all ranks.

    Chunks hold the same rows for any number of ranks; each chunk's sums are rounded to a grid on
    which float64 adds them without error, so every number of ranks gives the same centroids. A
    code that no row chose moves to a row that lies farthest from its centroid, which cannot raise
    the objective.

    Args:
        rows: This rank's block of rows.
        initial: Centroids to begin with; rank 0's are used.
        num_iterations: Upper limit, ``>= 1``.
        tolerance: Stop when an iteration lowers the objective by less than this fraction,
            ``>= 0``; 0: until nothing changes.

    Source:
        Lloyd 1982 (https://doi.org/10.1109/TIT.1982.1056489); repair as in scikit-learn.
    """
    centroids = from_rank_zero(initial.float())
    kept = _Kept(
        torch.empty(rows.num_local, dtype=torch.int16, device=centroids.device),
        Rounding(centroids.new_empty(rows.num_local), centroids.new_empty(rows.num_local)),
    )
    is_prefiltered = prefilter_pays(centroids)
    squares = _first_look(rows, kept, centroids, is_prefiltered=is_prefiltered)
    objectives: list[float] = []
    for _ in range(num_iterations):
        result = _assign(rows, centroids, kept, is_prefiltered=is_prefiltered)
        is_prefiltered = (
            is_prefiltered and result.num_in_doubt < _MAX_DOUBT_FRACTION * rows.num_rows
        )
        objectives.append(_objective(squares, centroids, result) / max(rows.num_rows, 1))
        if len(objectives) > 1 and objectives[-2] - objectives[-1] <= tolerance * objectives[-2]:
            break
        centroids = _moved(rows, centroids, result, kept.codes)
    return KMeans(centroids, objectives)


def cluster(
    points: Float[Tensor, "row dim"],
    initial: Float[Tensor, "code dim"],
    *,
    num_iterations: int,
    tolerance: float,
) -> Float[Tensor, "code dim"]:
    """Return the centroids of ``k_means`` on points that every rank holds; each works on a block.

    Args:
        points: The same on every rank.
        initial: Centroids to begin with; rank 0's are used.
        num_iterations: As for ``k_means``.
        tolerance: As for ``k_means``.
    """
    begin, end = block_of_rank(len(points))
    block = points[begin:end]
    rows = ShardedRows(lambda a, b: block[a:b], len(block), points.shape[1])
    return k_means(rows, initial, num_iterations=num_iterations, tolerance=tolerance).centroids


def sums_by_code(
    rows: Float[Tensor, "row dim"], codes: Int[Tensor, " row"], num_codes: int
) -> tuple[Float[Tensor, "code dim"], Int[Tensor, " code"]]:
    """Return per code the sum of its rows, added in their order, and their number."""
    order = codes.argsort(stable=True)
    counts = torch.bincount(codes, minlength=num_codes)
    first = counts.cumsum(dim=0) - counts
    return F.embedding_bag(order, rows, first, mode="sum"), counts


def _first_look(
    rows: ShardedRows, kept: _Kept, centroids: Tensor, *, is_prefiltered: bool
) -> float:
    """Return the sum of squares over all ranks; keep rounding for the prefilter."""
    total = torch.zeros((), dtype=torch.float64, device=centroids.device)
    unit = exact_sum_quantum(rows.largest * rows.largest * rows.dim * rows.chunk_rows, GRID_BITS)
    for block, chunk in _blocks(rows):
        total += (chunk.square().sum(dim=1).sum(dtype=torch.float64) / unit).round_()
        if is_prefiltered:
            found = rounding_of(chunk)
            kept.rounding.lengths[block], kept.rounding.errors[block] = found
    return sum_over_ranks(total).item() * unit


def _assign(rows: ShardedRows, centroids: Tensor, kept: _Kept, *, is_prefiltered: bool) -> _Pass:
    """Assign all rows to codes in one pass.

    The loop allocates no small long-lived tensors between chunks. They could occupy the memory of
    the last chunk, and the next chunk would need new memory.
    """
    num_codes, num_in_doubt = len(centroids), 0
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = torch.zeros(num_codes + 1, dtype=torch.int64, device=centroids.device)
    unit = exact_sum_quantum(rows.largest * rows.chunk_rows, GRID_BITS)
    prefilter = prefilter_of(centroids) if is_prefiltered else None
    for block, chunk in _blocks(rows):
        if prefilter is not None:
            rounding = Rounding(kept.rounding.lengths[block], kept.rounding.errors[block])
            codes, in_doubt = bf16_prefilter(chunk, prefilter, rounding)
            num_in_doubt += in_doubt
        else:
            codes = nearest_float32(chunk, centroids)
        kept.codes[block] = codes
        chunk_sums, chunk_counts = sums_by_code(chunk, codes, num_codes)
        sums += chunk_sums.double().div_(unit).round_()
        counts[:-1] += chunk_counts
    counts[-1] = num_in_doubt
    counts = sum_over_ranks(counts)
    return _Pass(sum_over_ranks(sums) * unit, counts[:-1], int(counts[-1]))


def _objective(squares: float, centroids: Tensor, result: _Pass) -> float:
    """Return the sum of squared distances, from sums: ``|x - c|^2 = |x|^2 - 2 x c + |c|^2``."""
    centers = centroids.double()
    moved = result.counts.double() @ centers.square().sum(dim=1)
    return max(squares + (moved - 2 * (centers * result.sums).sum()).item(), 0.0)


def _moved(rows: ShardedRows, centroids: Tensor, result: _Pass, codes: Tensor) -> Tensor:
    means = (result.sums / result.counts.clamp(min=1).unsqueeze(1)).float()
    empty = (result.counts == 0).nonzero().flatten()
    moved = torch.where((result.counts > 0).unsqueeze(1), means, centroids)
    if len(empty):
        distances = centroids.new_empty(rows.num_local)
        for block, chunk in _blocks(rows):
            distances[block] = _distances(chunk, centroids, codes[block])
        far = _farthest(rows, distances, len(empty))
        moved[empty[: len(far)]] = rows.take(far.sort().values)
    return moved


def _distances(rows: Tensor, centroids: Tensor, codes: Tensor) -> Tensor:
    return (rows - F.embedding(codes.long(), centroids)).square_().sum(dim=1)


def _farthest(rows: ShardedRows, distances: Tensor, count: int) -> Tensor:
    """Return the numbers of the rows with the largest distances above 0, over all ranks."""
    order = distances.sort(descending=True, stable=True).indices[:count]
    gathered = gather_rows(distances[order])
    numbers = gather_rows(order + rows.start)
    best = gathered.sort(descending=True, stable=True).indices[:count]
    return numbers[best][gathered[best] > 0]


def _blocks(rows: ShardedRows) -> Iterator[tuple[slice, Tensor]]:
    start = 0
    for chunk in rows.chunks():
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)
