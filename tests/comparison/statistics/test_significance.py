"""Statistics against scipy, against exact enumeration, and by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sidrec.comparison.statistics import significance as statistics
from sidrec.comparison.statistics.pareto import on_front
from sidrec.comparison.statistics.significance import (
    Spread,
    bonferroni,
    bootstrap_means,
    inflation,
    interval_of,
    paired_tests,
    share_of_draws,
    spread_over_seeds,
)


def hits(seed, shape, probability):
    return (np.random.default_rng(seed).random(shape) < probability).astype(float)


def test_spread_by_hand():
    found = spread_over_seeds(np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert found.mean == 0.5
    assert found.deviation == pytest.approx(0.5)  # of .5, 1, 0


def test_one_seed_has_no_deviation():
    assert math.isnan(spread_over_seeds(np.ones((1, 3))).deviation)


def test_no_request_has_no_mean():
    found = spread_over_seeds(np.ones((2, 0)))
    assert math.isnan(found.mean)
    assert found.num_seeds == 2
    assert isinstance(found, Spread)


def test_t_test_is_that_of_scipy_on_means_over_seeds():
    first, second = hits(0, (3, 200), 0.4), hits(1, (2, 200), 0.3)
    found = paired_tests(first, second, num_draws=100, seed=0)
    expected = stats.ttest_rel(first.mean(axis=0), second.mean(axis=0))
    assert found.t_p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx(first.mean() - second.mean())


def test_permutation_test_of_one_seed_is_mcnemars():
    first, second = hits(2, (1, 150), 0.5), hits(3, (1, 150), 0.35)
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    exact = stats.binomtest(only_first, only_first + only_second).pvalue
    found = paired_tests(first, second, num_draws=20_000, seed=4)
    assert found.permutation_p == pytest.approx(exact, abs=0.01)


def test_permutation_test_against_all_flips():
    differences = np.array([[0.5, -0.25, 1.0, 0.75, -0.5, 0.25]])
    sums = [abs(np.dot(signs, differences[0])) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    found = paired_tests(differences, np.zeros((1, 6)), num_draws=20_000, seed=1)
    assert found.permutation_p == pytest.approx(exact, abs=0.01)


def test_equal_systems_do_not_differ():
    values = hits(5, (3, 50), 0.5)
    assert paired_tests(values, values, num_draws=10, seed=0) == (0.0, 1.0, 1.0)


def test_chunks_change_no_p_value(monkeypatch):
    first, second = hits(6, (2, 40), 0.6), hits(7, (2, 40), 0.4)
    whole = paired_tests(first, second, num_draws=500, seed=3)
    means = bootstrap_means(first, num_draws=50, seed=3)
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 100)
    assert paired_tests(first, second, num_draws=500, seed=3) == whole
    np.testing.assert_array_equal(bootstrap_means(first, num_draws=50, seed=3), means)


def test_requests_must_be_the_same():
    with pytest.raises(ValueError, match="3 requests against 4: not paired"):
        paired_tests(np.ones((1, 3)), np.ones((1, 4)), num_draws=10, seed=0)


def test_bonferroni_by_hand():
    assert bonferroni([0.01, 0.3]) == [0.02, 0.6]
    assert bonferroni([]) == []


def test_bootstrap_is_that_of_scipy_with_one_seed():
    values = hits(8, (1, 300), 0.3)
    low, high = interval_of(bootstrap_means(values, num_draws=4_000, seed=0), level=0.95)
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=4_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.008)
    assert high == pytest.approx(theirs.high, abs=0.008)


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile(hits(9, (1, 400), 0.5), (3, 1))
    apart = np.concatenate([np.zeros((1, 400)), np.ones((1, 400)), alike[:1]])
    narrow, wide = (bootstrap_means(v, num_draws=1_000, seed=0).std() for v in (alike, apart))
    assert wide > 4 * narrow


def test_draws_of_two_systems_hold_the_same_requests():
    first = hits(10, (1, 100), 0.5)
    better = np.minimum(first + 0.1, 1.1)
    draws = [bootstrap_means(values, num_draws=200, seed=2) for values in (first, better)]
    np.testing.assert_allclose(draws[1] - draws[0], 0.1)


def test_bootstrap_of_no_request_is_nan():
    low, high = interval_of(bootstrap_means(np.ones((2, 0)), num_draws=5, seed=0), level=0.9)
    assert math.isnan(low)
    assert math.isnan(high)


def test_inflation_by_hand():
    assert inflation(0.3, 0.15) == pytest.approx(1.0)
    assert math.isnan(inflation(0.3, 0.0))


def test_share_of_draws_on_the_front():
    draws = np.array([[[1.0, 1.0], [2.0, 2.0]], [[1.0, 3.0], [2.0, 2.0]]])
    assert share_of_draws(draws, on_front) == [0.5, 1.0]
