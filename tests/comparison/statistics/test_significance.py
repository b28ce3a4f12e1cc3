"""Statistics against scipy, against exact enumeration, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics_level import CASES, draw_pair
from sidrec.comparison.statistics import significance as statistics
from sidrec.comparison.statistics.pareto import pareto_mask
from sidrec.comparison.statistics.significance import (
    Difference,
    Spread,
    bootstrap_means,
    difference_of_means,
    holm,
    inflation,
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


def one_each(number):
    return np.arange(number)


def test_two_fixed_systems_are_compared_by_the_paired_t_test():
    first, second = hits(0, (1, 200), 0.4), hits(1, (1, 200), 0.3)
    found = difference_of_means(first, second, one_each(200))
    expected = stats.ttest_rel(first[0], second[0])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.degrees_of_freedom == pytest.approx(199)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_requests_that_all_agree_leave_welchs_test_over_seed_means():
    first = np.tile([[0.2], [0.5], [0.4]], (1, 30))
    second = np.tile([[0.1], [0.3]], (1, 30))
    found = difference_of_means(first, second, one_each(30))
    expected = stats.ttest_ind(first[:, 0], second[:, 0], equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.degrees_of_freedom == pytest.approx(expected.df)


def test_groups_are_drawn_whole():
    first, second = hits(2, (1, 50), 0.5), hits(3, (1, 50), 0.4)
    alone = difference_of_means(first, second, one_each(50))
    copies = difference_of_means(
        np.repeat(first, 4, axis=1), np.repeat(second, 4, axis=1), np.repeat(one_each(50), 4)
    )
    assert copies == pytest.approx(alone)  # a paraphrase with the same answer is no new evidence


def test_noise_of_answers_counts_once():
    """Of seeds that differ by chance alone; twice the noise would give twice this variance."""
    draw = np.random.default_rng(4)
    errors = []
    for _ in range(200):
        first, second = (draw.random((5, 400)) < 0.5).astype(float), np.zeros((1, 400))
        errors.append(difference_of_means(first, second, one_each(400)).standard_error ** 2)
    assert 0.95 < np.mean(errors) / (0.25 / 5 / 400) < 1.4


def test_requests_that_are_hard_for_all_are_no_noise():
    draw = np.random.default_rng(6)
    first = 0.1 * draw.random((3, 60)) + np.array([[0.0], [0.3], [0.6]])  # seeds that differ
    second, hardness = 0.1 * draw.random((2, 60)), draw.normal(size=60)
    plain = difference_of_means(first, second, one_each(60))
    assert difference_of_means(first + hardness, second + hardness, one_each(60)) == pytest.approx(
        plain
    )


def test_equal_systems_do_not_differ():
    values = np.tile(hits(5, (1, 50), 0.5), (3, 1))
    found = difference_of_means(values, values, one_each(50))
    assert (found.mean, found.p_value, found.smallest_significant(0.05)) == (0.0, 1.0, 0.0)
    apart = difference_of_means(values + 0.1, values, one_each(50))
    assert apart.p_value == 0.0  # no seed and no request says otherwise


def test_one_group_of_requests_decides_nothing():
    found = difference_of_means(np.ones((2, 3)), np.zeros((2, 3)), np.zeros(3, int))
    assert found.mean == 1.0
    assert math.isnan(found.p_value)
    assert math.isnan(difference_of_means(np.ones((2, 0)), np.ones((1, 0)), one_each(0)).mean)


def test_requests_must_be_the_same():
    with pytest.raises(ValueError, match="3 requests against 4 in 3 places: not paired"):
        difference_of_means.__wrapped__(np.ones((1, 3)), np.ones((1, 4)), one_each(3))


@pytest.mark.parametrize("case", CASES)
def test_equal_systems_get_a_star_as_rarely_as_promised(case):
    draw, num_pairs = np.random.default_rng(1), 1_000
    _, *settings = CASES[case]
    found, over_requests = 0, 0
    for _ in range(num_pairs):
        first, second, groups = draw_pair(draw, 3, 100, *settings)
        found += difference_of_means(first, second, groups).p_value < 0.05
        over_requests += stats.ttest_rel(first.mean(axis=0), second.mean(axis=0)).pvalue < 0.05
    assert found <= 0.06 * num_pairs
    assert over_requests > (0.1 if "search" in case else 0.04) * num_pairs  # the test it replaces


def test_a_large_difference_is_found():
    draw = np.random.default_rng(2)
    first, second, groups = draw_pair(draw, 3, *CASES["search, same strategy"])
    worse = second * (draw.random(second.shape) < 0.2)
    assert difference_of_means(first, worse, groups).p_value < 0.02


def test_smallest_significant_difference_by_hand():
    found = Difference(0.03, 0.02, 4.0)
    assert found.smallest_significant(0.05) == pytest.approx(2.776445 * 0.02)
    least = Difference(found.smallest_significant(0.05), 0.02, 4.0)
    assert least.p_value == pytest.approx(0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.3, 0.02]) == pytest.approx([0.03, 0.3, 0.04])
    assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])  # order is kept
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_chunks_change_no_draw(monkeypatch):
    first, groups = hits(6, (2, 40), 0.6), np.repeat(one_each(20), 2)
    means = bootstrap_means(first, groups, num_draws=50, seed=3)
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 100)
    np.testing.assert_array_equal(bootstrap_means(first, groups, num_draws=50, seed=3), means)


def test_bootstrap_is_that_of_scipy_with_one_seed():
    values = hits(8, (1, 300), 0.3)
    draws = bootstrap_means(values, one_each(300), num_draws=4_000, seed=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=4_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.008)
    assert high == pytest.approx(theirs.high, abs=0.008)


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile(hits(9, (1, 400), 0.5), (3, 1))
    apart = np.concatenate([np.zeros((1, 400)), np.ones((1, 400)), alike[:1]])
    narrow, wide = (
        bootstrap_means(v, one_each(400), num_draws=1_000, seed=0).std() for v in (alike, apart)
    )
    assert wide > 4 * narrow


def test_draws_of_two_systems_hold_the_same_requests():
    first = hits(10, (1, 100), 0.5)
    better = np.minimum(first + 0.1, 1.1)
    draws = [
        bootstrap_means(values, one_each(100), num_draws=200, seed=2) for values in (first, better)
    ]
    np.testing.assert_allclose(draws[1] - draws[0], 0.1)


def test_bootstrap_of_no_request_is_nan():
    assert np.isnan(bootstrap_means(np.ones((2, 0)), one_each(0), num_draws=5, seed=0)).all()


def test_bootstrap_draws_groups_whole():
    values = np.array([[1.0, 1.0, 0.0, 0.0]])
    found = set(bootstrap_means(values, np.array([0, 0, 1, 1]), num_draws=100, seed=0))
    assert found == {0.0, 0.5, 1.0}


def test_inflation_by_hand():
    assert inflation(0.3, 0.15) == pytest.approx(1.0)
    assert math.isnan(inflation(0.3, 0.0))


def test_share_of_draws_on_the_front():
    draws = np.array([[[1.0, 1.0], [2.0, 2.0]], [[1.0, 3.0], [2.0, 2.0]]])
    assert share_of_draws(draws, pareto_mask) == [0.5, 1.0]
