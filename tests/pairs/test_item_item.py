from collections import Counter

import numpy as np
import pytest

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.pairs.item_item import item_item_pairs


def histories(*items_of_users):
    lengths = [len(items) for items in items_of_users]
    return Interactions(
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate([np.array(items, dtype=np.int64) for items in items_of_users]),
        np.concatenate([np.arange(n) for n in lengths]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def lay(interactions, window=2, cap=100, weighting="uniform"):
    return item_item_pairs(interactions, window=window, cap=cap, weighting=weighting)


def test_rows_and_known_positives_by_hand():
    pairs = lay(histories([7], [0, 1, 2, 3], [5, 6]), window=1)
    assert len(pairs) == 6  # a history of one item gives no pair
    drawn = pairs.draw(np.arange(6), seed=0, epoch=0)
    assert drawn.left.tolist() == [0, 1, 2, 3, 5, 6]
    assert [sorted(set(row) - {-1}) for row in drawn.known_positives.tolist()] == [
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3],
        [5, 6],
        [5, 6],
    ]
    assert drawn.right_item[[0, 3, 4, 5]].tolist() == [1, 2, 6, 5]
    assert drawn.right_item[1] in (0, 2)


def test_partners_never_leave_user_or_window():
    pairs = lay(histories(range(10), range(100, 130)), window=3)
    for epoch in range(20):
        drawn = pairs.draw(np.arange(len(pairs)), seed=4, epoch=epoch)
        distance = np.abs(drawn.left - drawn.right_item)
        assert distance.min() >= 1
        assert distance.max() <= 3
        assert ((drawn.left < 10) == (drawn.right_item < 10)).all()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("uniform", [0.25, 0.25, 0.25, 0.25]), ("inverse_distance", [1 / 6, 1 / 3, 1 / 3, 1 / 6])],
)
def test_weighting(weighting, expected):
    pairs = lay(histories([0, 1, 2, 3, 4]), weighting=weighting)
    drawn = [pairs.draw(np.array([2]), seed=0, epoch=e).right_item[0] for e in range(3000)]
    counts = Counter(drawn)
    np.testing.assert_allclose([counts[i] / 3000 for i in (0, 1, 3, 4)], expected, atol=0.04)


def test_long_histories_give_cap_anchors_spread_over_them():
    pairs = lay(histories(range(1000), range(2000, 2003)), cap=10)
    assert len(pairs) == 13
    first, second = (pairs.draw(np.arange(13), seed=0, epoch=e).left for e in (0, 1))
    assert (first[:10] // 100).tolist() == list(range(10))  # one from each tenth
    assert (first[:10] != second[:10]).any()
    assert first[10:].tolist() == [2000, 2001, 2002]


def test_an_item_is_no_partner_of_itself_when_others_are_near():
    pairs = lay(histories([1, 1, 2], [9, 9]), window=1)
    drawn = [pairs.draw(np.arange(5), seed=0, epoch=e).right_item.tolist() for e in range(30)]
    assert {row[1] for row in drawn} == {2}
    assert {row[3] for row in drawn} == {9}  # nothing else around


def test_a_draw_does_not_depend_on_the_batch_around_it():
    pairs = lay(histories(range(50)), cap=20)
    whole = pairs.draw(np.arange(20), seed=1, epoch=3)
    part = pairs.draw(np.array([13, 2]), seed=1, epoch=3)
    assert part.right_item.tolist() == whole.right_item[[13, 2]].tolist()


def test_frequency_by_hand():
    """Four anchors; the one interaction of the last user is in no pair."""
    frequency = lay(histories([0, 1], [2, 1, 3, 1], [0]), cap=2).log_frequency(5)
    np.testing.assert_allclose(np.exp(frequency), np.array([1, 2, 0.5, 0.5, 0]) / 4, atol=1e-7)


@pytest.mark.parametrize("cap", [5, 20])
def test_frequency_is_the_samplers_where_anchors_are_capped(cap):
    """Heavy users take other items than light ones, as they do in real data."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(2 + rng.pareto(0.8, 400) * 4, 400).astype(int)
    users = [
        np.minimum(rng.geometric(0.1 if length < 40 else 0.03, length) - 1, 99)
        for length in lengths
    ]
    pairs = lay(histories(*users), window=3, cap=cap)
    drawn = [pairs.draw(np.arange(len(pairs)), seed=0, epoch=e).right_item for e in range(100)]
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    often = counts > 400  # the counts' own error is below .05 nats
    simulated = np.log(counts / counts.sum())[often]
    error = pairs.log_frequency(100)[often] - simulated
    assert often.sum() > 40
    assert error.std() < 0.12
    shares = np.bincount(np.concatenate(users), minlength=100)[often] / lengths.sum()
    assert (np.log(shares) - simulated).std() > 2 * error.std()  # without weights


def test_refusals():
    with pytest.raises(ConfigError, match="window and cap must be 1 or more, got 0 and 5"):
        lay(histories([1, 2]), window=0, cap=5)
    with pytest.raises(ConfigError, match="window and cap must be 1 or more, got 1 and 0"):
        lay(histories([1, 2]), window=1, cap=0)
    assert len(lay(histories([1, 2]), window=1, cap=1)) == 1


def test_heavier_interactions_are_drawn_more_often_and_counted_so():
    """Item 1 has partners 0 and 2, of weights 1 and 5; its user's draws fall 1 : 2 : 5."""
    plain = histories([0, 1, 2])
    pairs = lay(plain._replace(weight=np.array([1, 2, 5], np.float32)), window=1)
    middle = np.ones(1, np.int64)
    drawn = [int(pairs.draw(middle, seed=0, epoch=e).right_item[0]) for e in range(600)]
    assert drawn.count(2) / 600 == pytest.approx(5 / 6, abs=0.05)
    np.testing.assert_allclose(np.exp(pairs.log_frequency(3)), [1 / 8, 2 / 8, 5 / 8], rtol=1e-5)
    one = lay(plain._replace(weight=np.ones(3, np.float32)), window=1)
    for epoch in range(50):  # ones change nothing
        rows = np.arange(3)
        same = [
            kind.draw(rows, seed=3, epoch=epoch).right_item for kind in (lay(plain, window=1), one)
        ]
        np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(one.log_frequency(3), lay(plain).log_frequency(3))
