"""Every policy places new items among IDs in use, and never asks for the vectors of old items."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.collisions.policies import ExtraLevel, KeepCollisions, ReassignLastLevel
from sidrec.semantic_ids.collisions.sinkhorn import SinkhornLastLevel, load_policy, transport_duals
from tests.semantic_ids.made import quantizer_of, random_quantizer

LINE = quantizer_of([[0.0], [100.0]], [[0.0], [1.0], [5.0]])
UNIQUE = [ReassignLastLevel(), SinkhornLastLevel(epsilon=0.05, num_iterations=10)]
ALL = [*UNIQUE, ExtraLevel(num_codes=60), KeepCollisions(), ReassignLastLevel(capacity=2)]


def resolve(policy, vectors, fitted, in_use=None):
    return policy.resolve(vectors, fitted.encode(vectors), fitted, in_use=in_use).codes


@pytest.mark.parametrize("policy", UNIQUE)
def test_a_new_item_takes_the_nearest_code_that_is_free_by_hand(policy):
    in_use = torch.tensor([[0, 0], [0, 1], [1, 2]])
    assert resolve(policy, torch.tensor([[0.1]]), LINE, in_use).tolist() == [[0, 2]]
    full = torch.tensor([[0, 0], [0, 1], [0, 2]])
    assert resolve(policy, torch.tensor([[0.1]]), LINE, full).tolist() == [[1, 0]]


def test_capacity_by_hand():
    in_use = torch.tensor([[0, 0], [0, 0], [0, 1]])
    policy = ReassignLastLevel(capacity=2)
    # one place is left at code 1; going on from there to 5 costs item 0 most: 25 - 1
    vectors = torch.tensor([[0.0], [0.2], [0.1]])
    assert resolve(policy, vectors, LINE, in_use).tolist() == [[0, 1], [0, 2], [0, 2]]
    assert resolve(policy, torch.zeros(5, 1), LINE).tolist() == [
        [0, 0], [0, 0], [0, 1], [0, 1], [0, 2],
    ]  # fmt: skip


def test_extra_level_takes_the_lowest_numbers_not_in_use():
    in_use = torch.tensor([[0, 0, 1], [0, 0, 3], [1, 0, 0], [0, 1, 2]])
    vectors = torch.tensor([[0.0], [0.0], [100.0], [0.0], [5.0], [1.0]])
    numbers = resolve(ExtraLevel(num_codes=5), vectors, LINE, in_use)
    assert numbers[:, :2].tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [0, 2], [0, 1]]
    assert numbers[:, 2].tolist() == [0, 2, 1, 4, 0, 0]


@given(st.integers(0, 300), st.integers(0, 40), st.integers(1, 30), st.sampled_from(ALL))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_new_ids_keep_off_those_in_use(seed, num_old, num_new, policy):
    fitted = random_quantizer((3, 4, 6), seed=seed % 5)
    generator = torch.Generator().manual_seed(seed)
    # few distinct values, so that items with identical vectors abound
    vectors = torch.randint(0, 2, (num_old + num_new, 3), generator=generator).float()
    old = resolve(policy, vectors[:num_old], fitted)
    new = resolve(policy, vectors[num_old:], fitted, old)
    assert new.shape == (num_new, old.shape[1])
    _, counts = torch.cat([old, new]).unique(dim=0, return_counts=True)
    if not isinstance(policy, KeepCollisions):
        assert counts.max() <= getattr(policy, "capacity", 1)
    untouched = vectors[num_old:]
    if isinstance(policy, KeepCollisions | ExtraLevel):
        assert torch.equal(new[:, :3], fitted.encode(untouched))


def test_ids_in_use_beyond_the_capacity_take_no_place_from_others():
    in_use = torch.tensor([[0, 0]] * 5)  # made by another policy
    new = resolve(ReassignLastLevel(), torch.tensor([[0.0], [0.0], [0.0]]), LINE, in_use)
    assert new.tolist() == [[0, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (UNIQUE[0], r"5 items do not fit .*\[2, 3\] with 6 distinct IDs, 2 places are in use"),
        (UNIQUE[1], r"5 items do not fit .*\[2, 3\] with 6 distinct IDs, 2 places are in use"),
        (ExtraLevel(num_codes=4), "6 items share the same codes but the extra level has 4"),
    ],
)
def test_too_many_new_items_are_refused_with_numbers(policy, message):
    in_use = torch.tensor([[0, 0], [0, 1]])
    if isinstance(policy, ExtraLevel):
        in_use = torch.tensor([[0, 0, 0], [0, 1, 0]])
        with pytest.raises(ConfigError, match=message):
            resolve(policy, torch.zeros(5, 1), LINE, in_use)
        return
    with pytest.raises(ConfigError, match=message):
        resolve(policy, torch.zeros(5, 1), LINE, in_use)


def test_more_items_than_places_are_refused_with_the_capacity():
    with pytest.raises(
        ConfigError, match=r"13 items do not fit .* 6 distinct IDs for 2 items each"
    ):
        resolve(ReassignLastLevel(capacity=2), torch.zeros(13, 1), LINE)
    with pytest.raises(ConfigError, match="capacity is 0, expected at least 1 item"):
        ReassignLastLevel(capacity=0)


def test_sinkhorn_comes_near_the_best_assignment():
    from scipy.optimize import linear_sum_assignment

    ratios = {}
    for policy in (ReassignLastLevel(), SinkhornLastLevel(epsilon=0.02, num_iterations=100)):
        found = best = 0.0
        for seed in range(10):
            vectors = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed)) * 0.1
            fitted = random_quantizer((1, 40), seed=seed)
            errors = fitted.next_code_errors(vectors, torch.zeros(30, 1, dtype=torch.int64))
            best += errors[linear_sum_assignment(errors.numpy())].sum().item()
            codes = resolve(policy, vectors, fitted)
            found += errors.gather(1, codes[:, 1:]).sum().item()
        ratios[type(policy)] = found / best
    assert 1 <= ratios[SinkhornLastLevel] < 1.02
    assert ratios[SinkhornLastLevel] < ratios[ReassignLastLevel]


def test_sinkhorn_moves_nobody_who_shares_with_nobody():
    vectors = torch.randn(60, 3)
    fitted = random_quantizer((4, 30))
    codes = fitted.encode(vectors)
    after = resolve(SinkhornLastLevel(epsilon=0.05, num_iterations=20), vectors, fitted)
    _, group, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    alone = counts[group] == 1
    assert alone.any()
    assert torch.equal(after[alone], codes[alone])
    assert len(after.unique(dim=0)) == 60
    batch = SinkhornLastLevel(epsilon=0.05, num_iterations=20)
    assert torch.equal(resolve(batch, vectors, fitted), after)


@pytest.mark.parametrize("capacity", [1, 20])
def test_sinkhorn_of_an_overfull_prefix_has_bounded_costs(monkeypatch, capacity):
    vectors = torch.randn(900, 3, generator=torch.Generator().manual_seed(3)) * 0.05
    fitted = random_quantizer((30, 60) if capacity == 1 else (1, 60))
    policy = SinkhornLastLevel(capacity=capacity)
    codes = fitted.encode(vectors)
    whole = resolve(policy, vectors, fitted)
    asked, cells = [], []
    next_code_errors, duals = type(fitted).next_code_errors, transport_duals

    def counted(self, vectors, prefix):
        errors = next_code_errors(self, vectors, prefix)
        asked.append(errors.numel())
        return errors

    def measured(errors, group, room, **settings):
        cells.append(errors.size)
        return duals(errors, group, room, **settings)

    monkeypatch.setattr(type(fitted), "next_code_errors", counted)
    monkeypatch.setattr("sidrec.semantic_ids.collisions.sinkhorn.transport_duals", measured)
    monkeypatch.setattr("sidrec.semantic_ids.collisions.capacitated_assignment._BATCH_CELLS", 1_200)
    parts = resolve(policy, vectors, fitted)
    assert cells
    assert max(cells) <= 2 * 1_200
    assert max(asked) <= 3 * 1_200  # whole small prefixes together
    assert parts.unique(dim=0, return_counts=True)[1].max() <= capacity
    error, least = ((vectors - fitted.decode(one)).square().sum().item() for one in (parts, whole))
    nearest = (vectors - fitted.decode(codes)).square().sum().item()
    assert error - nearest < 1.1 * (least - nearest)


def test_batches_of_small_prefixes_do_not_change_sinkhorn(monkeypatch):
    vectors = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    fitted = random_quantizer((16, 40))
    whole = resolve(SinkhornLastLevel(), vectors, fitted)
    assert (whole != fitted.encode(vectors)).any()
    monkeypatch.setattr("sidrec.semantic_ids.collisions.capacitated_assignment._BATCH_CELLS", 3_200)
    assert torch.equal(resolve(SinkhornLastLevel(), vectors, fitted), whole)


def test_sinkhorn_settings_are_checked():
    with pytest.raises(ConfigError, match=r"epsilon is 0\.0, expected more than 0"):
        SinkhornLastLevel(epsilon=0.0, num_iterations=1)
    with pytest.raises(ConfigError, match="num_iterations is 0, expected at least 1"):
        SinkhornLastLevel(epsilon=0.1, num_iterations=0)


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.settings()["name"])
def test_a_stored_policy_is_the_one_that_was_used(policy):
    assert load_policy(policy.settings()) == policy


def test_policies_of_older_and_unknown_bundles():
    assert load_policy({"name": "reassign_last_level"}) == ReassignLastLevel()
    with pytest.raises(
        DataError, match=r"No CollisionPolicy is named 'magic', expected one of .*sinkhorn"
    ):
        load_policy({"name": "magic"})
    with pytest.raises(DataError, match=r"'none' does not take the stored settings \{'size': 3\}"):
        load_policy({"name": "none", "size": 3})


def test_prices_by_hand():
    errors, group = np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32), np.zeros(2, dtype=int)
    roomy = transport_duals(errors, group, np.array([[2.0, 2.0]]), epsilon=1.0, num_iterations=50)
    np.testing.assert_array_equal(roomy, 0)
    # one place each: code 0 costs as much as code 1 once its dual is 1, the difference in error
    tight = transport_duals(errors, group, np.array([[1.0, 1.0]]), epsilon=1.0, num_iterations=200)
    np.testing.assert_allclose(errors + tight, 1, atol=0.02)


def test_groups_have_prices_of_their_own():
    errors = np.random.default_rng(0).random((40, 6), dtype=np.float32)
    group, room = np.repeat(np.arange(10), 4), np.ones((10, 6))
    together = transport_duals(errors, group, room, epsilon=0.1, num_iterations=60)
    alone = [
        transport_duals(
            errors[rows], np.zeros(4, dtype=int), room[:1], epsilon=0.1, num_iterations=60
        )
        for rows in np.split(np.arange(40), 10)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)
