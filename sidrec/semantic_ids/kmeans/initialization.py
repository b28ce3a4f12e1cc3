"""Initial centroids of k-means: shrunken random, k-means++, greedy, or progressive dimensions."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sidrec.distributed import from_rank_zero
from sidrec.semantic_ids.kmeans.lloyd import cluster
from sidrec.semantic_ids.kmeans.sharded_rows import ShardedRows

SHRINK_FRACTION = 0.25
GREEDY_FRACTION = 0.3
_GREEDY_ROWS_PER_CODE = 24
_GREEDY_AT_ONCE = 16
_DRAW_BITS = 40  # of the largest weight; 2^22 of them fit into an integer
PROGRESSIVE_STEPS = 10
PROGRESSIVE_ITERATIONS = 10
_PROGRESSIVE_TOLERANCE = 0.01


def uniform_sample(
    rows: ShardedRows, *, sample_rows: int, generator: torch.Generator
) -> Float[Tensor, "row dim"]:
    """Return up to ``sample_rows`` rows of all ranks, drawn without replacement, in order."""
    chosen = torch.randperm(rows.num_rows, generator=generator)[:sample_rows]
    return rows.take(chosen.sort().values)


def kmeans_pp_init(
    sample: Float[Tensor, "row dim"], *, num_codes: int, generator: torch.Generator
) -> Float[Tensor, "code dim"]:
    """Draw each next centroid with probability proportional to its distance squared.

    Where every row already is a centroid (fewer distinct rows than codes), rows repeat.

    Source:
        Arthur and Vassilvitskii 2007 (https://dl.acm.org/doi/10.5555/1283383.1283494).
    """
    draws = torch.rand(num_codes, generator=generator, dtype=torch.float64).tolist()
    squares = sample.square().sum(dim=1)
    row = min(int(draws[0] * len(sample)), len(sample) - 1)
    chosen = [row]
    least = torch.full_like(squares, torch.inf)
    for draw in draws[1:]:
        to_row = squares + squares[row] - 2 * (sample @ sample[row])
        least = torch.minimum(least, to_row.clamp_(min=0))
        least[row] = 0
        drawn = torch.tensor([draw], dtype=torch.float64, device=sample.device)
        row = min(int(_drawn_rows(least, drawn)), len(sample) - 1)
        chosen.append(row)
    return sample[chosen]


def _drawn_rows(weights: Float[Tensor, " row"], draws: Float64[Tensor, " draw"]) -> Tensor:
    """Return for each number in [0, 1) the row at that share of the running sum of weights.

    The weights are rounded to a grid of 2^-40 of the largest one and summed as integers: a sum of
    floats has no fixed order on a GPU, and ``use_deterministic_algorithms`` refuses it there.
    """
    exponent = torch.frexp(weights.max()).exponent
    running = torch.ldexp(weights.double(), (_DRAW_BITS - exponent).double()).long().cumsum(dim=0)
    return torch.searchsorted(running, (running[-1] * draws).long(), right=True)


def shrunken_random_init(
    sample: Float[Tensor, "row dim"], *, num_codes: int, generator: torch.Generator
) -> Float[Tensor, "code dim"]:
    """Draw rows at random and pull them toward the mean, to a quarter of their distance.

    Near the mean all centroids compete for all rows, and no centroid begins at an outlier.
    Centroids on outliers make later levels uneven (docs/decisions/0009-central-start.md).
    """
    mean = sample.mean(dim=0)
    chosen = torch.randperm(len(sample), generator=generator)[:num_codes]
    return torch.lerp(mean, sample[chosen.to(sample.device)], SHRINK_FRACTION)


def greedy_kmeans_pp_init(
    sample: Float[Tensor, "row dim"], *, num_codes: int, generator: torch.Generator
) -> Float[Tensor, "code dim"]:
    """Choose rows by greedy k-means++, then pull them toward the mean.

    Candidates are drawn as in ``kmeans_pp_init``; the one that leaves the least sum of squared
    distances is kept. So centroids find the clusters, and outliers are seldom chosen. Pulled to .3
    of their distance from the mean, centroids compete for all rows as in ``shrunken_random_init``
    (docs/decisions/0019-greedy-start.md). The function samples 24 rows per code.

    Source:
        Arthur and Vassilvitskii 2007 (https://dl.acm.org/doi/10.5555/1283383.1283494), sec. 5;
        Grunau et al. 2022 (https://arxiv.org/abs/2207.08748); 2 + log(codes) candidates a centroid
        as in scikit-learn. Differs: candidates of up to 16 centroids (a quarter of those that there
        are) are drawn at once, which makes one large matrix product of 16 small ones; each of the
        16 is the best of all that are left.
    """
    if len(sample) > _GREEDY_ROWS_PER_CODE * num_codes:
        few = torch.randperm(len(sample), generator=generator)[: _GREEDY_ROWS_PER_CODE * num_codes]
        sample = sample[few.sort().values.to(sample.device)]
    mean = sample.mean(dim=0)
    rows = sample - mean
    squares = rows.square().sum(dim=1)
    num_tries = 2 + int(math.log(num_codes))
    draws = torch.rand(num_codes * num_tries, generator=generator, dtype=torch.float64)
    chosen = [min(int(draws[-1] * len(rows)), len(rows) - 1)]
    least = (squares + squares[chosen] - 2 * (rows @ rows[chosen[0]])).clamp_(min=0)
    least[chosen] = 0
    while len(chosen) < num_codes:
        num_wanted = min(max(len(chosen) // 4, 1), _GREEDY_AT_ONCE, num_codes - len(chosen))
        drawn = draws[(len(chosen) - 1) * num_tries :][: num_wanted * num_tries]
        found = _drawn_rows(least, drawn.to(rows.device)).clamp_(max=len(rows) - 1)
        left = torch.mm(rows[found], rows.T).mul_(-2)  # [candidate, row]
        left.add_(squares).add_(squares[found].unsqueeze(1)).clamp_(min=0)
        for _ in range(num_wanted):
            torch.minimum(left, least, out=left)
            best = left.sum(dim=1).argmin()
            least = left[best].index_fill(0, found[best], 0)
            chosen.append(int(found[best]))
    return torch.lerp(mean, sample[chosen], GREEDY_FRACTION)


def progressive_dims_init(
    sample: Float[Tensor, "row dim"], *, num_codes: int, generator: torch.Generator
) -> Float[Tensor, "code dim"]:
    """Solve k-means in the first principal dimension, then in more of them, step by step.

    Each solution, with zeros in the new dimensions, initializes the next one. So centroids first
    follow the strong directions, then the weak ones.

    Source:
        ``ProgressiveDimClustering`` of faiss, with which its ``ResidualQuantizer`` trains
        (https://github.com/facebookresearch/faiss). Differs: the last solution is
        only an initialization.
    """
    mean = sample.mean(dim=0)
    rotated, axes = _principal(sample - mean)
    dim = sample.shape[1]
    first = torch.randperm(len(sample), generator=generator)[:num_codes]
    initial = rotated[first.to(rotated.device)]
    for step in range(1, PROGRESSIVE_STEPS):
        kept = int(dim ** (step / PROGRESSIVE_STEPS))
        initial[:, :kept] = cluster(
            rotated[:, :kept],
            initial[:, :kept],
            num_iterations=PROGRESSIVE_ITERATIONS,
            tolerance=_PROGRESSIVE_TOLERANCE,
        )
        initial[:, kept:] = 0
    return initial @ axes.T + mean


def _principal(centered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows in principal coordinates and the axes as columns, strongest first."""
    covariance = (centered.T @ centered).double()
    axes = torch.linalg.eigh(covariance.cpu()).eigenvectors.flip(1).float().to(centered.device)
    axes = from_rank_zero(axes)
    return centered @ axes, axes
