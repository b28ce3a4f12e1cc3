import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.errors import ConfigError
from sidrec.semantic_ids.collisions.policies import (
    ExtraLevel,
    KeepCollisions,
    ReassignLastLevel,
    group_numbers,
)
from sidrec.semantic_ids.quality.id_metrics import identical_groups, level_usage, quality_of
from tests.semantic_ids.made import quantizer_of, random_quantizer

LINE = quantizer_of([[0.0], [100.0]], [[0.0], [1.0], [5.0]])


def resolve(policy, vectors, fitted):
    codes = fitted.encode(vectors)
    return codes, policy.resolve(vectors, codes, fitted)


def test_the_item_that_would_lose_most_keeps_its_code_by_hand():
    # both want code 0 (at 0); next is 1: item 0 (at 0.4) loses .36 - .16, item 1 (at 0.1) .81 - .01
    codes, after = resolve(ReassignLastLevel(), torch.tensor([[0.4], [0.1]]), LINE)
    assert codes.tolist() == [[0, 0], [0, 0]]
    assert after.codes.tolist() == [[0, 1], [0, 0]]


def test_overflow_moves_to_the_next_prefix_with_room():
    vectors = torch.tensor([[0.0], [1.0], [5.0], [5.1], [100.0]])
    _, after = resolve(ReassignLastLevel(), vectors, LINE)
    assert after.codes[:, 0].sum() == 2  # one of the four near 0 had to leave
    assert after.codes[4, 0] == 1
    assert len(after.codes.unique(dim=0)) == 5


def test_identical_items_are_told_apart_in_item_order():
    _, after = resolve(ReassignLastLevel(), torch.zeros(3, 1), LINE)
    assert after.codes.tolist() == [[0, 0], [0, 1], [0, 2]]


def test_extra_level_counts_within_each_group():
    vectors = torch.tensor([[0.0], [1.0], [0.1], [0.0]])
    _, after = resolve(ExtraLevel(num_codes=3), vectors, LINE)
    assert after.codes.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2]]
    assert after.codebook_sizes == (2, 3, 3)


def test_extra_level_too_small_is_refused_with_numbers():
    with pytest.raises(ConfigError, match="3 items share the same codes but the extra level has 2"):
        resolve(ExtraLevel(num_codes=2), torch.zeros(3, 1), LINE)


@pytest.mark.parametrize("num_codes", [0, 40_000])
def test_an_extra_level_that_cannot_be_stored_is_refused(num_codes):
    with pytest.raises(ConfigError, match=f"num_codes is {num_codes}, expected 1 to 32768"):
        ExtraLevel(num_codes=num_codes)


def test_none_keeps_codes_as_they_are():
    codes, after = resolve(KeepCollisions(), torch.zeros(3, 1), LINE)
    assert torch.equal(codes, after.codes)


def test_more_items_than_ids_are_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"7 items do not fit into .*\[2, 3\] with 6"):
        resolve(ReassignLastLevel(), torch.zeros(7, 1), LINE)


@st.composite
def catalogues(draw):
    sizes = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=4)))
    num_items = draw(st.integers(1, math.prod(sizes)))
    values = st.sampled_from([-1.5, -0.5, 0.0, 0.1, 0.5, 2.0])  # few values: many identical items
    rows = draw(st.lists(st.tuples(values, values), min_size=num_items, max_size=num_items))
    return sizes, torch.tensor(rows), draw(st.integers(0, 5))


@given(catalogues())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_ids_are_unique_and_prefixes_are_kept_where_there_is_room(catalogue):
    sizes, vectors, seed = catalogue
    fitted = random_quantizer(sizes, dim=2, seed=seed)
    codes, after = resolve(ReassignLastLevel(), vectors, fitted)
    assert len(after.codes.unique(dim=0)) == len(codes)
    assert ((after.codes >= 0) & (after.codes < torch.tensor(sizes))).all()
    assert torch.equal(resolve(ReassignLastLevel(), vectors, fitted)[1].codes, after.codes)
    prefixes_fit = all(
        bool((torch.bincount(group_numbers(codes[:, :level])) <= math.prod(sizes[level:])).all())
        for level in range(1, len(sizes))
    )
    if prefixes_fit:
        alone = torch.bincount(group_numbers(codes))[group_numbers(codes)] == 1
        assert torch.equal(after.codes[:, :-1], codes[:, :-1])
        assert torch.equal(after.codes[alone], codes[alone])


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_no_item_overtakes_its_prefix_without_need(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(60, 3, generator=generator)
    fitted = random_quantizer((8, 30), seed=seed)
    codes, after = resolve(ReassignLastLevel(), vectors, fitted)
    crowded = torch.bincount(codes[:, 0], minlength=8) > 30
    calm = ~crowded[codes[:, 0]]
    assert torch.equal(after.codes[calm, 0], codes[calm, 0])


def test_added_error_is_near_the_best_assignment():
    from scipy.optimize import linear_sum_assignment

    vectors = torch.randn(30, 3) * 0.3
    fitted = random_quantizer((1, 40))
    codes, after = resolve(ReassignLastLevel(), vectors, fitted)
    errors = fitted.next_code_errors(vectors, codes[:, :1])
    best = errors[linear_sum_assignment(errors.numpy())].sum()
    found = errors.gather(1, after.codes[:, 1:]).sum()
    assert best - 1e-4 <= found <= 1.1 * best


def test_batches_of_groups_do_not_change_the_result(monkeypatch):
    vectors = torch.randn(400, 3)
    fitted = random_quantizer((16, 40))
    _, whole = resolve(ReassignLastLevel(), vectors, fitted)
    monkeypatch.setattr("sidrec.semantic_ids.collisions.capacitated_assignment._BATCH_CELLS", 800)
    _, parts = resolve(ReassignLastLevel(), vectors, fitted)
    assert torch.equal(whole.codes, parts.codes)


@pytest.mark.parametrize("num_equal", [0, 150])
def test_an_overfull_group_in_parts_gives_the_same_codes(monkeypatch, num_equal):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(600, 3, generator=generator) * 0.05  # nearly all on one coarse code
    vectors[:num_equal] = vectors[0]
    fitted = random_quantizer((30, 24))
    codes, whole = resolve(ReassignLastLevel(), vectors, fitted)
    assert codes[:, 0].bincount().max() > 5 * 24  # a coarse code that overflows
    asked = []
    original = type(fitted).next_code_errors

    def counted(self, vectors, prefix):
        asked.append(len(vectors))
        return original(self, vectors, prefix)

    monkeypatch.setattr(type(fitted), "next_code_errors", counted)
    monkeypatch.setattr("sidrec.semantic_ids.collisions.capacitated_assignment._BATCH_CELLS", 150)
    monkeypatch.setattr("sidrec.semantic_ids.collisions.capacitated_assignment._LEAST_WIDTH", 2)
    _, parts = resolve(ReassignLastLevel(), vectors, fitted)
    assert torch.equal(whole.codes, parts.codes)
    assert max(asked) <= 4 * 150 // 24


def test_a_hundred_thousand_items_take_seconds():
    vectors = torch.randn(100_000, 8)
    fitted = random_quantizer((256, 256, 256), dim=8)
    started = time.process_time()
    _, after = resolve(ReassignLastLevel(), vectors, fitted)
    assert time.process_time() - started < 10
    assert len(after.codes.unique(dim=0)) == 100_000


def test_quality_by_hand():
    vectors = torch.tensor([[0.0], [0.0], [1.0], [100.0]])
    codes, after = resolve(ReassignLastLevel(), vectors, LINE)
    assert after.codes.tolist() == [[0, 0], [0, 2], [0, 1], [1, 0]]
    quality = quality_of(vectors, codes, after, LINE)
    deviation = (vectors - vectors.mean()).square().sum().item()
    expected = {
        "ids/relative_error": 25 / deviation,
        "ids/relative_error_before": 0.0,
        "ids/added_distortion": 25 / deviation,
        "ids/collision_rate": 0.0,
        "ids/collision_rate_before": 0.5,
        "ids/unique_fraction_before": 0.75,
        "ids/largest_group": 1.0,
        "ids/largest_group_before": 2.0,
        "ids/moved_fraction": 0.25,
        "ids/prefix_moved_fraction": 0.0,
        "ids/identical_embeddings": 0.5,
        "ids/usage_level_1": 1.0,
        "ids/dead_codes_level_2": 0.0,
        "ids/entropy_level_2": 1.5,
        "ids/perplexity_level_2": 2**1.5,
        "ids/perplexity_level_1_before": 2 ** -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)),
    }
    assert {key: quality[key] for key in expected} == pytest.approx(expected)


def test_dead_codes_are_counted():
    usage = level_usage(torch.tensor([3, 3, 3]), num_codes=8)
    expected = {"usage": 1 / 8, "dead_codes": 7.0, "entropy": 0.0, "perplexity": 1.0, "gini": 7 / 8}
    assert usage == pytest.approx(expected)


def test_identical_rows_share_a_group_whatever_the_sign_of_zero():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0], [1.0, 1e-7]])
    groups = identical_groups(vectors)
    assert groups[0] == groups[2]
    assert groups.unique().numel() == 3
