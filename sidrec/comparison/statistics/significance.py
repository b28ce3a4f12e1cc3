"""Significance tests and intervals over seeds and requests.

The input is one matrix per system: the figure (say, recall@30) of each request under each seed.
All systems of a comparison answer the same requests, in the same order. Both seeds and requests
are samples: another training and other users would give other figures.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

_CELLS_AT_ONCE = 1 << 22
_ROUNDING = 1e-12  # smaller differences of means are float rounding

Values = Float[np.ndarray, "seed request"]
Groups = Int[np.ndarray, " request"]


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over seeds.

    Attributes:
        mean: Mean over seeds of the mean over requests.
        deviation: Sample standard deviation over seeds (n - 1); NaN for a single seed.
        num_seeds: Number of seeds.
    """

    mean: float
    deviation: float
    num_seeds: int


class Difference(NamedTuple):
    """Difference of two means with its standard error over seeds and requests.

    Attributes:
        mean: Mean of the first system minus mean of the second.
        standard_error: Over other seeds and other groups of requests; NaN where unknown.
        degrees_of_freedom: Of ``standard_error``, by Satterthwaite, ``> 0``; NaN where unknown.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: float

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the t-test against no difference."""
        if self.standard_error < _ROUNDING:
            return 1.0 if abs(self.mean) < _ROUNDING else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.degrees_of_freedom))

    def smallest_significant(self, level: float) -> float:
        """Return the smallest difference with a p-value below ``level`` at this standard error."""
        if self.standard_error < _ROUNDING:
            return 0.0
        return float(stats.t.isf(level / 2, self.degrees_of_freedom) * self.standard_error)

    def interval(self, coverage: float) -> tuple[float, float]:
        """Return the confidence interval of the mean for a coverage in (0, 1)."""
        half = self.smallest_significant(1 - coverage)
        return self.mean - half, self.mean + half


def spread_over_seeds(values: Values) -> Spread:
    """Return mean and standard deviation of a figure over seeds.

    >>> spread_over_seeds(np.array([[0.0, 1.0], [1.0, 1.0]]))
    Spread(mean=0.75, deviation=0.3535533905932738, num_seeds=2)
    """
    if values.size == 0:
        return Spread(math.nan, math.nan, len(values))
    means = values.mean(axis=1)
    deviation = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return Spread(float(means.mean()), deviation, len(means))


def difference_of_means(
    first: Values, second: Float[np.ndarray, "other_seed request"], groups: Groups
) -> Difference:
    """Estimate the difference of two systems, with both seeds and requests as samples.

    The variance has two parts. The first is the variance of the difference of request means over
    groups of requests. The second is the variance of both systems' seed means, less the noise of
    single answers, which the first part includes. Satterthwaite's formula combines their degrees of
    freedom. For systems that no seed affects, this is the paired t-test over groups. Where requests
    matter little, it is Welch's t-test over seed means. Seeds of two systems are not paired: a
    shared effect makes the test conservative.

    Args:
        first: Figures of one system. A single row means that no seed affects the system.
        second: Figures of the other, on the same requests; zeros to estimate ``first`` alone.
        groups: Number of each request's group; requests of one group (a query and its
            paraphrases) are drawn together. Fewer than two groups give NaN errors.

    Raises:
        ValueError: If the numbers of requests differ.

    Source:
        Satterthwaite 1946, https://doi.org/10.2307/3002019; variance of crossed samples: Owen
        2007 (arXiv 0712.1111), whose sum counts the noise of single answers twice.
    """
    if not first.shape[1] == second.shape[1] == len(groups):
        raise ValueError(
            f"{first.shape[1]} requests against {second.shape[1]} in {len(groups)} places: "
            "not paired"
        )
    gap = first.mean(axis=0) - second.mean(axis=0)
    mean = float(gap.mean()) if gap.size else math.nan
    num_groups = len(np.unique(groups))
    if num_groups < 2:
        return Difference(mean, math.nan, math.nan)
    over_requests = _variance_of_mean(gap - mean, groups)
    over_seeds, squares = 0.0, over_requests**2 / (num_groups - 1)
    for values in (first, second):
        num_seeds = len(values)
        if num_seeds > 1:
            means = values.mean(axis=1, keepdims=True)
            rest = values - values.mean(axis=0) - means + values.mean()
            noise = sum(_variance_of_mean(row, groups) for row in rest) / (num_seeds - 1)
            own = float(means.var(ddof=1))
            over_seeds += (own - noise) / num_seeds
            squares += (own / num_seeds) ** 2 / (num_seeds - 1)
    variance = over_requests + max(over_seeds, 0.0)
    freedom = variance**2 / squares if squares > 0 else math.inf
    return Difference(mean, math.sqrt(variance), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the size of their family (Holm), keeping their order.

    >>> holm([0.01, 0.5, 0.04])
    [0.03, 0.5, 0.08]

    Source:
        Holm 1979, https://www.jstor.org/stable/4615733.
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    steps = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * values[order]), 1.0)
    return adjusted.tolist()  # type: ignore[no-any-return]


def bootstrap_means(
    values: Values, groups: Groups, *, num_draws: int, seed: int
) -> Float[np.ndarray, " draw"]:
    """Draw bootstrap means with resampled groups of requests and seeds.

    Groups and seeds are drawn with replacement, independently of each other. With three seeds
    these draws vary less than new seeds would (by the factor 2/3 in variance): use them to rank
    systems, not to decide significance. The groups of a draw depend only on ``seed`` and their
    number, so draw ``b`` of two systems holds the same requests.

    Args:
        values: Figures of one system.
        groups: Number of each request's group.
        num_draws: Number of draws.
        seed: Seed of the draws.

    Source:
        Owen 2007, the pigeonhole bootstrap (arXiv 0712.1111).
    """
    num_seeds = len(values)
    if values.size == 0:
        return np.full(num_draws, math.nan)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    num_groups = len(sizes)
    sums = np.stack([np.bincount(group, weights=row) for row in values], axis=1)  # [group, seed]
    requests, seeds = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    chunk = max(1, _CELLS_AT_ONCE // num_groups)
    means = []
    for start in range(0, num_draws, chunk):
        size = min(chunk, num_draws - start)
        weights = _counts(requests.integers(num_groups, size=(size, num_groups)))
        by_seed = weights @ sums / (weights @ sizes)[:, None]  # [draw, seed]
        chosen = _counts(seeds.integers(num_seeds, size=(size, num_seeds)))
        means.append((by_seed * chosen).sum(axis=1) / num_seeds)
    return np.concatenate(means)


def inflation(semantic_id_level: float, item_level: float) -> float:
    """Return the relative excess of the SID-level figure over the item-level one; NaN over 0.

    >>> round(inflation(0.3, 0.2), 3)
    0.5
    """
    return semantic_id_level / item_level - 1 if item_level > 0 else math.nan


def share_of_draws(
    draws: Float[np.ndarray, "draw system objective"],
    is_member: Callable[[Float[np.ndarray, "system objective"]], Bool[np.ndarray, " system"]],
) -> list[float]:
    """Return for each system the share of draws in which it belongs to a set.

    Args:
        draws: Figures of all systems, draw by draw.
        is_member: Marks the members, e.g. :func:`sidrec.comparison.statistics.pareto.pareto_mask`.
    """
    return np.mean([is_member(draw) for draw in draws], axis=0).tolist()  # type: ignore[no-any-return]


def _variance_of_mean(centered: Float[np.ndarray, " request"], groups: Groups) -> float:
    """Return the variance of the mean of figures that sum to 0, with whole groups resampled."""
    sums = np.bincount(groups, weights=centered)
    num_groups = len(np.unique(groups))
    return float((sums**2).sum() / len(centered) ** 2 * num_groups / (num_groups - 1))


def _counts(drawn: Int[np.ndarray, "draw n"]) -> Float[np.ndarray, "draw n"]:
    """Count how often each of ``n`` elements was drawn, per draw."""
    num_draws, size = drawn.shape
    flat = drawn + size * np.arange(num_draws)[:, None]
    return np.bincount(flat.ravel(), minlength=num_draws * size).reshape(num_draws, size) * 1.0
