"""What may be concluded from runs over several seeds, asked the same requests.

Everything starts from one matrix per system: the figure (say, recall@30) of each request under
each seed. All systems of a comparison answer the same requests, in the same order.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

_CELLS_AT_ONCE = 1 << 22

Values = Float[np.ndarray, "seed request"]


class Spread(NamedTuple):
    """Mean over seeds of a figure, and how much the seeds differ.

    Attributes:
        mean: Mean over seeds of the mean over requests.
        deviation: Sample standard deviation over seeds (n - 1); NaN of a single seed.
        num_seeds: Seeds behind it.
    """

    mean: float
    deviation: float
    num_seeds: int


class PairedTest(NamedTuple):
    """Is one system better than another on requests like these?

    Attributes:
        difference: Mean of the first minus mean of the second.
        t_p: Two-sided p-value of the paired t-test over requests.
        permutation_p: Two-sided p-value of the sign-flip permutation test of the same differences.
    """

    difference: float
    t_p: float
    permutation_p: float


def spread_over_seeds(values: Values) -> Spread:
    """Return mean and standard deviation over seeds.

    >>> spread_over_seeds(np.array([[0.0, 1.0], [1.0, 1.0]]))
    Spread(mean=0.75, deviation=0.3535533905932738, num_seeds=2)
    """
    if values.size == 0:
        return Spread(math.nan, math.nan, len(values))
    means = values.mean(axis=1)
    deviation = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return Spread(float(means.mean()), deviation, len(means))


def paired_tests(
    first: Values,
    second: Float[np.ndarray, "other_seed other_request"],
    *,
    num_draws: int,
    seed: int,
) -> PairedTest:
    """Compare two systems request by request.

    A request is the unit: its value is the mean over seeds, so that the answers of several seeds
    to one request do not count as independent, and systems may have different numbers of seeds.
    Hits are 0 or 1, which a t-test bears on hundreds of requests and not on a dozen; the
    permutation test assumes no more than that the two systems could be exchanged. With one seed
    each it is McNemar's exact test, drawn instead of counted.

    Args:
        first: Of one system.
        second: Of the other, on the same requests.
        num_draws: Random sign flips; the smallest p-value is ``1 / (num_draws + 1)``.
        seed: Of the flips.

    Raises:
        ValueError: If the numbers of requests differ.

    Source:
        Paired t-test: Penha et al. 2025 (arXiv 2508.10478). Both: Smucker et al. 2007,
        https://doi.org/10.1145/1321440.1321528.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{first.shape[1]} requests against {second.shape[1]}: not paired")
    differences = first.mean(axis=0) - second.mean(axis=0)
    mean = float(differences.mean()) if differences.size else math.nan
    different = differences[np.abs(differences) > 1e-12]
    if different.size == 0:
        return PairedTest(mean, 1.0, 1.0)
    return PairedTest(
        mean, _t_p(differences), _permutation_p(different, num_draws=num_draws, seed=seed)
    )


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Multiply each p-value by the size of its family, at most to 1.

    >>> bonferroni([0.01, 0.5, 0.04])
    [0.03, 1.0, 0.12]
    """
    return [min(1.0, p * len(p_values)) for p in p_values]


def bootstrap_means(values: Values, *, num_draws: int, seed: int) -> Float[np.ndarray, " draw"]:
    """Draw what the mean could have been with other requests and other seeds.

    Requests and seeds are drawn again with replacement, independently of each other: both are
    samples, and every seed meets every request. For crossed factors this is somewhat too wide
    rather than too narrow. The requests of a draw depend on ``seed`` and their number alone, so
    draw ``b`` of two systems holds the same requests and their difference is a paired one.

    Args:
        values: Of one system.
        num_draws: Draws.
        seed: Of the draws.

    Source:
        Owen 2007, the pigeonhole bootstrap (arXiv 0712.1111).
    """
    num_seeds, num_requests = values.shape
    if values.size == 0:
        return np.full(num_draws, math.nan)
    requests, seeds = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    chunk = max(1, _CELLS_AT_ONCE // num_requests)
    means = []
    for start in range(0, num_draws, chunk):
        size = min(chunk, num_draws - start)
        weights = _counts(requests.integers(num_requests, size=(size, num_requests)))
        by_seed = weights @ values.T / num_requests  # [draw, seed]
        chosen = _counts(seeds.integers(num_seeds, size=(size, num_seeds)))
        means.append((by_seed * chosen).sum(axis=1) / num_seeds)
    return np.concatenate(means)


def interval_of(draws: Float[np.ndarray, " draw"], *, level: float) -> tuple[float, float]:
    """Return the percentile interval that holds the share ``level`` of the draws."""
    if np.isnan(draws).any():
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def inflation(semantic_id_level: float, item_level: float) -> float:
    """Return by which share the SID-level figure exceeds the item-level one; NaN over 0.

    >>> round(inflation(0.3, 0.2), 3)
    0.5
    """
    return semantic_id_level / item_level - 1 if item_level > 0 else math.nan


def _t_p(differences: Float[np.ndarray, " request"]) -> float:
    if differences.size < 2:
        return math.nan
    if np.ptp(differences) < 1e-12:  # no spread, and not zero: t is infinite
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _permutation_p(
    differences: Float[np.ndarray, " request"], *, num_draws: int, seed: int
) -> float:
    """Return the share of sign flips whose sum is at least as far from 0, the real one included."""
    flips = np.random.default_rng(seed)
    observed = abs(differences.sum()) - 1e-9  # sums in another order differ by rounding
    chunk = max(1, _CELLS_AT_ONCE // differences.size)
    extreme = 1
    for start in range(0, num_draws, chunk):
        size = min(chunk, num_draws - start)
        signs = flips.integers(0, 2, size=(size, differences.size), dtype=np.int8)
        sums = (2 * signs - 1).astype(np.float64) @ differences
        extreme += int((np.abs(sums) >= observed).sum())
    return extreme / (num_draws + 1)


def _counts(drawn: Int[np.ndarray, "draw n"]) -> Float[np.ndarray, "draw n"]:
    """Return how often each of ``n`` things was drawn, draw by draw."""
    num_draws, size = drawn.shape
    flat = drawn + size * np.arange(num_draws)[:, None]
    return np.bincount(flat.ravel(), minlength=num_draws * size).reshape(num_draws, size) * 1.0


def share_of_draws(
    draws: Float[np.ndarray, "draw system objective"],
    is_member: Callable[[Float[np.ndarray, "system objective"]], Bool[np.ndarray, " system"]],
) -> list[float]:
    """Return for each system the share of the draws in which it belongs to a set.

    Args:
        draws: Figures of all systems, draw by draw.
        is_member: Say, :func:`sidrec.comparison.statistics.pareto.on_front`.
    """
    return np.mean([is_member(draw) for draw in draws], axis=0).tolist()  # type: ignore[no-any-return]
