"""k-means of rows that may be spread over ranks: Lloyd's iterations with repair of empty codes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero, gather_rows, sum_over_ranks
from sidrec.semantic_ids.rows import Rows, grid_unit

_OBJECTIVE_BITS = 30


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
    scores = torch.addmm(centroids.square().sum(dim=1), rows, centroids.T, alpha=-2)  # [row, code]
    least, codes = scores.min(dim=1)
    return (least + rows.square().sum(dim=1)).clamp_(min=0), codes


def k_means(
    rows: Rows,
    start: Float[Tensor, "code dim"],
    *,
    num_iterations: int,
    tolerance: float,
) -> KMeans:
    """Improve ``start`` by Lloyd's iterations over the rows of all ranks.

    Sums are exact (see ``Rows``), so every number of ranks gives the same centroids. A code that
    no row chose moves to a row that lies farthest from its centroid, which cannot raise the
    objective.

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
    for _ in range(num_iterations):
        result = _assign(rows, centroids)
        objectives.append(result.objective)
        if len(objectives) > 1 and objectives[-2] - objectives[-1] <= tolerance * objectives[-2]:
            break
        centroids = _moved(rows, centroids, result)
    return KMeans(centroids, objectives)


def _assign(rows: Rows, centroids: Tensor) -> _Pass:
    num_codes = len(centroids)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = torch.zeros(num_codes, dtype=torch.int64, device=centroids.device)
    total = torch.zeros((), dtype=torch.float64, device=centroids.device)
    bound = rows.largest + centroids.abs().max().item()
    unit = grid_unit(bound * bound * rows.dim, _OBJECTIVE_BITS)
    distances = [centroids.new_zeros(0)]
    for chunk in rows.chunks():
        least, codes = nearest(chunk, centroids)
        sums.index_add_(0, codes, chunk.double())
        counts += torch.bincount(codes, minlength=num_codes)
        total += (least.double() / unit).round_().sum()
        distances.append(least)
    objective = sum_over_ranks(total).item() * unit / max(rows.num_rows, 1)
    return _Pass(sum_over_ranks(sums), sum_over_ranks(counts), objective, torch.cat(distances))


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
