"""Splits of interactions and queries into train, valid and test."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

import polars as pl

from sidrec.corpus.schema import SPLITS, Split
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.errors import DataError

_MIN_INTERACTIONS_TO_SPLIT = 3
_COUNTS = 1 << 16  # counts held at once in the search for a moment


class TimeBounds(NamedTuple):
    """Bounds of a temporal split: the first moment of valid and of test, in microseconds."""

    valid_from: int
    test_from: int


def time_bounds(
    moments: pl.LazyFrame, *, test_fraction: float, valid_fraction: float
) -> TimeBounds:
    """Find the bounds of a temporal split over the interactions of all users.

    Interactions of one moment stay together: all of them belong to the later split.

    Args:
        moments: One column, timestamp, of all interactions, in any order, in microseconds. It is
            read a few times and never held in memory.
        test_fraction: Share of the interactions that is test, the latest.
        valid_fraction: Share of the interactions before those that is valid.
    """
    total = int(moments.select(pl.len()).collect(engine="streaming").item())
    valid_row = min(int(total * (1 - test_fraction - valid_fraction)), total - 1)
    test_row = min(int(total * (1 - test_fraction)), total - 1)
    return TimeBounds(_smallest(moments, valid_row), _smallest(moments, test_row))


def _smallest(moments: pl.LazyFrame, row: int) -> int:
    """Return the moment at ``row`` of the sorted moments, by successively finer counts."""
    column = pl.col("timestamp").cast(pl.Int128)  # a difference of two may need 65 bits
    ends = moments.select(low=column.min(), high=column.max()).collect(engine="streaming")
    low, high = ends.row(0)
    while low < high:
        width = (high - low) // _COUNTS + 1
        counts = (
            moments.filter(column.is_between(low, high))
            .group_by(((column - low) // width).alias("place"))
            .len()
            .collect(engine="streaming")
            .sort("place")
            .with_columns(end=pl.col("len").cum_sum())
        )
        place, number, end = counts.filter(pl.col("end") > row).row(0)
        row -= end - number
        low += place * width
        high = min(high, low + width - 1)
    return int(low)


def leave_last_out() -> pl.Expr:
    """Return the split of each row of a frame sorted by user, then time, users whole.

    The last interaction of a user is test, the one before it valid, all earlier ones train;
    users with fewer than three interactions are all train.
    """
    from_end = pl.len().over("user_index") - pl.int_range(pl.len()).over("user_index")
    enough = pl.len().over("user_index") >= _MIN_INTERACTIONS_TO_SPLIT
    return (
        pl.when(enough & (from_end == 1))
        .then(pl.lit("test"))
        .when(enough & (from_end == 2))
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )


def temporal(bounds: TimeBounds) -> pl.Expr:
    """Return the split of each row by its moment alone."""
    return (
        pl.when(pl.col("timestamp") >= bounds.test_from)
        .then(pl.lit("test"))
        .when(pl.col("timestamp") >= bounds.valid_from)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )


def query_splits(
    queries: Sequence[RawQuery],
    *,
    test_fraction: float,
    valid_fraction: float,
    held_out: Collection[int] = (),
) -> list[Split]:
    """Assign a split to every query; equal groups and equal texts get the same split.

    Queries that share a group or a normalized text (letter case, punctuation and spaces ignored)
    stay together. Such a family keeps its given split; where its groups have different ones, test
    takes precedence over valid, and valid over train. Without a given split, a stable hash of its
    group decides. Finally, a share of the train families moves to valid, by another hash.

    Args:
        queries: All queries of the corpus.
        test_fraction: Share of the families without a given split that becomes test.
        valid_fraction: Share of the train families that moves to valid.
        held_out: Places of queries whose families are test whatever else holds.

    Raises:
        DataError: If one group has two given splits.
    """
    _check_groups(queries)
    families = _families(queries)
    splits: list[Split] = ["train"] * len(queries)
    for rows in families:
        key = min(queries[row].group for row in rows)
        given = {queries[row].split for row in rows} - {""}
        if given:
            split: Split = max((name for name in SPLITS if name in given), key=SPLITS.index)
        else:
            split = "test" if hash_fraction(f"test {key}") < test_fraction else "train"
        if split == "train" and hash_fraction(f"valid {key}") < valid_fraction:
            split = "valid"
        if any(row in held_out for row in rows):
            split = "test"
        for row in rows:
            splits[row] = split
    check_query_splits(queries, splits)
    return splits


def check_query_splits(queries: Sequence[RawQuery], splits: Sequence[Split]) -> None:
    """Refuse splits that separate a group, or queries of one normalized text.

    Raises:
        DataError: If two such queries have different splits; the message names both.
    """
    seen: dict[Hashable, tuple[str, Split]] = {}
    for query, split in zip(queries, splits, strict=True):
        for key in (("group", query.group), ("text", normalized(query.text))):
            other, other_split = seen.setdefault(key, (query.query_id, split))
            if other_split != split:
                raise DataError(
                    f"Queries '{other}' ({other_split}) and '{query.query_id}' ({split}) have the "
                    f"same {key[0]} but different splits; give them one split."
                )


def normalized(text: str) -> str:
    """Return a text without letter case, punctuation and repeated spaces.

    Examples:
        >>> normalized("  Heist film, in PARIS! ")
        'heist film in paris'
    """
    kept = "".join(sign if sign.isalnum() else " " for sign in text.casefold())
    return " ".join(kept.split()) or text.strip()


def hash_fraction(key: str) -> float:
    """Map a text to [0, 1), the same on every machine and in every Python.

    Examples:
        >>> round(hash_fraction("valid llm-1-0"), 6)
        0.231702
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _check_groups(queries: Iterable[RawQuery]) -> None:
    given: dict[str, RawQuery] = {}
    for query in queries:
        if not query.split:
            continue
        other = given.setdefault(query.group, query)
        if other.split != query.split:
            raise DataError(
                f"Queries '{other.query_id}' ({other.split}) and '{query.query_id}' "
                f"({query.split}) of {query.source} share group '{query.group}' but not a split; "
                "give the group one split."
            )


def _families(queries: Sequence[RawQuery]) -> list[list[int]]:
    """Return row numbers joined by group or text, directly or through others."""
    first_with: dict[Hashable, int] = {}
    parent = list(range(len(queries)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, query in enumerate(queries):
        for key in (("group", query.group), ("text", normalized(query.text))):
            one, other = root(first_with.setdefault(key, row)), root(row)
            parent[max(one, other)] = min(one, other)
    families: dict[int, list[int]] = defaultdict(list)
    for row in range(len(queries)):
        families[root(row)].append(row)
    return list(families.values())
