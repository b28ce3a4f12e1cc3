import numpy as np
import pytest

from sidrec.training.counter_rng import key_of, permute, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_every_place_once(size):
    image = permute(np.arange(size), size=size, key=5)
    assert sorted(image) == list(range(size))


def test_any_part_alone_gives_the_same():
    whole = permute(np.arange(5000), size=5000, key=1)
    some = np.array([4999, 0, 17, 17])
    np.testing.assert_array_equal(permute(some, size=5000, key=1), whole[some])


def test_keys_give_unlike_shuffles_and_no_order_remains():
    one, two = (permute(np.arange(4096), size=4096, key=key_of(7, epoch)) for epoch in (0, 1))
    assert (one == two).mean() < 0.01
    assert abs(np.corrcoef(one, np.arange(4096))[0, 1]) < 0.06  # 4 standard errors
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.06


def test_a_tiny_range_reaches_all_its_orders():
    seen = {tuple(permute(np.arange(3), size=3, key=key)) for key in range(200)}
    assert len(seen) == 6


def test_trillions_need_no_memory():
    size = 10**12
    image = permute(np.array([0, 1, size - 1]), size=size, key=3)
    assert len(set(image.tolist())) == 3
    assert image.max() < size


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([5]), size=5, key=0)


def test_uniform_numbers_are_uniform_and_repeatable():
    drawn = uniform(np.arange(20_000), key=9)
    np.testing.assert_array_equal(drawn, uniform(np.arange(20_000), key=9))
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 28  # chi-square, 9 degrees, p = .001
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_keys_know_where_one_part_ends():
    assert key_of(1, 23) != key_of(12, 3)
    assert key_of(1) != key_of("1")
