"""k-means of rows that may be spread over ranks: Lloyd's iterations with repair of empty codes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero, gather_rows, sum_over_ranks
from sidrec.semantic_ids.rows import CHUNK_ROWS, Rows, grid_unit

GRID_BITS = 34  # a chunk's sum keeps as many bits; float64 then adds 2^18 chunks without error
_SCORES_IN_CACHE = 1 << 18  # scores that the processor's cache holds while they are searched
_SEARCH_WIDTH = 32  # codes of which the least score is found at once


class KMeans(NamedTuple):
    """Result of one run.

    Attributes:
        centroids: float32.
        objectives: Mean squared distance of a row to its nearest centroid, once per iteration,
            before that iteration moved the centroids; never rises.
    """

    centroids: Float[Tensor, "code dim"]
    objectives: list[float]


class _Pass(NamedTuple):
    sums: Tensor  # [code, dim] float64, exact
    counts: Tensor  # [code] int64
    objective: float
    distances: Tensor  # [local row] float32, squared


def nearest(
    rows: Float[Tensor, "row dim"], centroids: Float[Tensor, "code dim"]
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """Return the squared distance to the nearest centroid and its code; ties: the lowest code."""
    least, codes = _least_scores(rows, centroids, centroids.square().sum(dim=1))
    return (least + rows.square().sum(dim=1)).clamp_(min=0), codes


def k_means(
    rows: Rows,
    start: Float[Tensor, "code dim"],
    *,
    num_iterations: int,
    tolerance: float,
) -> KMeans:
    """Improve ``start`` by Lloyd's iterations over the rows of all ranks.

    Chunks hold the same rows for any number of ranks; each chunk's sums are rounded to a grid on
    which float64 adds them without error, so every number of ranks gives the same centroids. A
    code that no row chose moves to a row that lies farthest from its centroid, which cannot raise
    the objective.

    Args:
        rows: This rank's block of rows.
        start: Centroids to begin with; rank 0's are used.
        num_iterations: Upper limit, ``>= 1``.
        tolerance: Stop when an iteration lowers the objective by less than this fraction,
            ``>= 0``; 0 goes on until nothing changes.

    Source:
        Lloyd 1982 (https://doi.org/10.1109/TIT.1982.1056489); repair as in scikit-learn.
    """
    centroids = from_rank_zero(start.float())
    objectives: list[float] = []
    squares = centroids.new_empty(rows.num_local)  # filled by the first pass
    for _ in range(num_iterations):
        result = _assign(rows, centroids, squares, is_first=not objectives)
        objectives.append(result.objective)
        if len(objectives) > 1 and objectives[-2] - objectives[-1] <= tolerance * objectives[-2]:
            break
        centroids = _moved(rows, centroids, result)
    return KMeans(centroids, objectives)


def sums_by_code(
    rows: Float[Tensor, "row dim"], codes: Int[Tensor, " row"], num_codes: int
) -> tuple[Float[Tensor, "code dim"], Int[Tensor, " code"]]:
    """Return per code the sum of its rows, added in their order, and their number."""
    order = codes.argsort(stable=True)
    counts = torch.bincount(codes, minlength=num_codes)
    first = counts.cumsum(dim=0) - counts
    return F.embedding_bag(order, rows, first, mode="sum"), counts


def _least_scores(rows: Tensor, centroids: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return per row the least of ``squares - 2 * product`` and its code."""
    step = len(rows) if rows.is_cuda else max(64, _SCORES_IN_CACHE // len(centroids))
    parts = [rows[a : a + step] for a in range(0, max(len(rows), 1), max(step, 1))]
    found = [_least(torch.addmm(squares, part, centroids.T, alpha=-2)) for part in parts]
    least, codes = zip(*found, strict=True)
    return torch.cat(least), torch.cat(codes)


def _least(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``scores.min(dim=1)``, first over groups of codes: torch finds no index in SIMD."""
    num_rows, num_codes = scores.shape
    if scores.is_cuda or num_codes % _SEARCH_WIDTH or num_codes == _SEARCH_WIDTH:
        least, codes = scores.min(dim=1)
        return least, codes
    num_groups = num_codes // _SEARCH_WIDTH
    groups = scores.view(num_rows * num_groups, _SEARCH_WIDTH)
    least, group = groups.amin(dim=1).view(num_rows, num_groups).min(dim=1)
    own = torch.arange(0, len(groups), num_groups).add_(group)
    inside = F.embedding(own, groups).min(dim=1).indices
    return least, inside.add_(group, alpha=_SEARCH_WIDTH)


def _assign(rows: Rows, centroids: Tensor, squares: Tensor, *, is_first: bool) -> _Pass:
    """Look at all rows once.

    Nothing small is made to last while chunks come and go: it would settle where the last chunk
    was, and the next one would need new memory.
    """
    num_codes = len(centroids)
    distances = torch.empty_like(squares)
    code_squares = centroids.square().sum(dim=1)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = torch.zeros(num_codes, dtype=torch.int64, device=centroids.device)
    total = torch.zeros((), dtype=torch.float64, device=centroids.device)
    bound = rows.largest + centroids.abs().max().item()
    unit = grid_unit(bound * bound * rows.dim * CHUNK_ROWS, GRID_BITS)
    sum_unit = grid_unit(rows.largest * CHUNK_ROWS, GRID_BITS)
    for number, chunk in enumerate(rows.chunks()):
        block = slice(number * CHUNK_ROWS, number * CHUNK_ROWS + len(chunk))
        if is_first:
            torch.sum(chunk.square(), dim=1, out=squares[block])
        least, codes = _least_scores(chunk, centroids, code_squares)
        torch.add(least, squares[block], out=distances[block]).clamp_(min=0)
        chunk_sums, chunk_counts = sums_by_code(chunk, codes, num_codes)
        sums += chunk_sums.double().div_(sum_unit).round_()
        counts += chunk_counts
        total += (distances[block].sum(dtype=torch.float64) / unit).round_()
    objective = sum_over_ranks(total).item() * unit / max(rows.num_rows, 1)
    return _Pass(sum_over_ranks(sums) * sum_unit, sum_over_ranks(counts), objective, distances)


def _moved(rows: Rows, centroids: Tensor, result: _Pass) -> Tensor:
    means = (result.sums / result.counts.clamp(min=1).unsqueeze(1)).float()
    empty = (result.counts == 0).nonzero().flatten()
    moved = torch.where((result.counts > 0).unsqueeze(1), means, centroids)
    if len(empty):
        far = _farthest(rows, result.distances, len(empty))
        moved[empty[: len(far)]] = rows.take(far.sort().values)
    return moved


def _farthest(rows: Rows, distances: Tensor, count: int) -> Tensor:
    """Return the numbers of the rows with the largest distances above 0, over all ranks."""
    order = distances.sort(descending=True, stable=True).indices[:count]
    gathered = gather_rows(distances[order])
    numbers = gather_rows(order + rows.start)
    best = gathered.sort(descending=True, stable=True).indices[:count]
    return numbers[best][gathered[best] > 0]
