"""Front and area by hand, and by law."""

import numpy as np
import pytest

from sidrec.comparison.statistics.pareto import contributions, hypervolume, pareto_mask


def test_front_by_hand():
    points = np.array([[0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.1, 0.9], [0.1, 0.8]])
    assert pareto_mask(points).tolist() == [True, True, False, True, False]


def test_equal_points_stand_together():
    assert pareto_mask(np.array([[0.5, 0.5], [0.5, 0.5]])).tolist() == [True, True]


def test_missing_figure_keeps_off_the_front():
    points = np.array([[np.nan, 0.9], [0.5, 0.5]])
    assert pareto_mask(points).tolist() == [False, True]
    assert hypervolume(points) == 0.25


def test_area_by_hand():
    assert hypervolume(np.array([[0.5, 0.25]])) == 0.125
    assert hypervolume(np.array([[0.5, 0.25], [0.25, 0.5]])) == pytest.approx(0.1875)
    assert hypervolume(np.zeros((0, 2))) == 0.0


def test_area_against_counting_cells():
    points = np.random.default_rng(0).random((12, 2))
    grid = (np.arange(400) + 0.5) / 400
    covered = np.zeros((400, 400), bool)
    for across, up in points:
        covered |= (grid[:, None] < across) & (grid[None] < up)
    assert hypervolume(points) == pytest.approx(covered.mean(), abs=0.005)


def test_order_does_not_matter_and_the_dominated_add_nothing():
    points = np.random.default_rng(1).random((10, 2))
    order = np.random.default_rng(2).permutation(10)
    assert pareto_mask(points)[order].tolist() == pareto_mask(points[order]).tolist()
    assert hypervolume(points) == pytest.approx(hypervolume(points[order]))
    assert hypervolume(points[pareto_mask(points)]) == pytest.approx(hypervolume(points))


def test_contribution_is_what_would_be_lost():
    points = np.array([[0.5, 0.25], [0.25, 0.5], [0.2, 0.2]])
    assert contributions(points) == pytest.approx([0.0625, 0.0625, 0.0])
