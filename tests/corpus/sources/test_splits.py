import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.corpus.sources.splits import (
    check_query_splits,
    hash_fraction,
    leave_last_out,
    normalized,
    query_splits,
    temporal,
    time_bounds,
)
from sidrec.errors import DataError


def query(query_id, text, group, split=""):
    return RawQuery(query_id, text, ("i1",), group, split, "tests")


def test_leave_last_out_by_hand():
    frame = pl.DataFrame({"user_index": [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]})
    assert frame.select(leave_last_out()).to_series().to_list() == [
        *("train", "valid", "test"),
        *("train", "train"),
        *("train", "train", "valid", "test"),
        "train",
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_leave_last_out_law(lengths):
    users = [user for user, length in enumerate(lengths) for _ in range(length)]
    frame = pl.DataFrame({"user_index": users}).with_columns(split=leave_last_out())
    for user, length in enumerate(lengths):
        splits = frame.filter(pl.col("user_index") == user)["split"].to_list()
        ends = ["valid", "test"] if length >= 3 else []
        assert splits == ["train"] * (length - len(ends)) + ends


def test_temporal_by_hand():
    frame = pl.DataFrame({"timestamp": [5, 1, 2, 3, 4, 6, 7, 8, 9, 10]})
    bounds = time_bounds(frame.lazy(), test_fraction=0.2, valid_fraction=0.3)
    assert bounds == (6, 9)
    splits = dict(zip(frame["timestamp"], frame.select(temporal(bounds)).to_series(), strict=True))
    assert [moment for moment, split in splits.items() if split == "test"] == [9, 10]
    assert [moment for moment, split in splits.items() if split == "valid"] == [6, 7, 8]


def test_one_moment_is_never_torn_apart():
    frame = pl.DataFrame({"timestamp": [1, 2, 2, 2, 2]})
    bounds = time_bounds(frame.lazy(), test_fraction=0.2, valid_fraction=0.2)
    assert frame.select(temporal(bounds)).to_series().to_list() == ["train", *["test"] * 4]


def test_given_splits_stay_and_paraphrases_stay_together():
    queries = [
        query("1", "a heist", "g1", "train"),
        query("2", "robbery", "g1", "train"),
        query("3", "space", "g2", "test"),
        query("4", "sea", "g3", "valid"),
    ]
    splits = query_splits(queries, test_fraction=0.5, valid_fraction=0.0)
    assert splits == ["train", "train", "test", "valid"]


def test_same_text_in_two_groups_goes_to_the_stronger_split_with_its_paraphrases():
    queries = [
        query("1", "A heist!", "g1", "train"),
        query("2", "robbery", "g1", "train"),
        query("3", "a  heist", "g2", "test"),
        query("4", "sea", "g3", "train"),
    ]
    splits = query_splits(queries, test_fraction=0.0, valid_fraction=0.0)
    assert splits == ["test", "test", "test", "train"]


def test_half_given_group_follows_what_was_given():
    queries = [query("1", "a", "g1"), query("2", "b", "g1", "test")]
    assert query_splits(queries, test_fraction=0.0, valid_fraction=0.0) == ["test", "test"]


def test_group_with_two_given_splits_is_refused():
    queries = [query("1", "a", "g1", "train"), query("2", "b", "g1", "test")]
    with pytest.raises(DataError, match=r"'1' \(train\) and '2' \(test\) of tests share group"):
        query_splits(queries, test_fraction=0.0, valid_fraction=0.0)


def test_shares_and_stability():
    queries = [query(str(i), f"text {i}", f"g{i}") for i in range(2_000)]
    splits = query_splits(queries, test_fraction=0.2, valid_fraction=0.05)
    assert splits.count("test") / 2_000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("valid") / 2_000 == pytest.approx(0.04, abs=0.015)
    # a group's side does not depend on the other groups or on the order
    again = query_splits(queries[::-1][:500], test_fraction=0.2, valid_fraction=0.05)
    assert again == splits[::-1][:500]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 4)), min_size=1, max_size=12),
    st.floats(0, 0.9),
)
def test_no_group_and_no_text_is_ever_on_two_sides(pairs, fraction):
    queries = [query(str(i), text, f"g{group}") for i, (text, group) in enumerate(pairs)]
    splits = query_splits(queries, test_fraction=fraction, valid_fraction=fraction)
    check_query_splits(queries, splits)
    for key in ("text", "group"):
        sides = {(getattr(q, key), split) for q, split in zip(queries, splits, strict=True)}
        assert len(sides) == len({value for value, _ in sides})


def test_check_names_the_two_queries():
    queries = [query("1", "a heist", "g1"), query("2", "A heist.", "g2")]
    with pytest.raises(DataError, match=r"'1' \(train\) and '2' \(test\) have the same text"):
        check_query_splits(queries, ["train", "test"])
    queries = [query("1", "x", "g1"), query("2", "y", "g1")]
    with pytest.raises(DataError, match=r"'1' \(test\) and '2' \(valid\) have the same group"):
        check_query_splits(queries, ["test", "valid"])


def test_text_of_signs_alone_is_its_own_key():
    assert normalized("?!") == "?!"
    assert normalized("Straße, São") == "strasse são"


def test_hash_fraction_is_even():
    fractions = [hash_fraction(str(i)) for i in range(5_000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert sum(fractions) / 5_000 == pytest.approx(0.5, abs=0.02)
