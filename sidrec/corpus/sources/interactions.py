"""Interactions as every reader makes them: the time unit of the corpus, and k-core filtering."""

from typing import Literal

import polars as pl

TimeUnit = Literal["s", "ms", "us"]

TICKS_PER_SECOND = 1  # of RawCatalogue.interactions.timestamp
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "rating": pl.Float32,
}


def timestamps(number: pl.Expr, unit: TimeUnit) -> pl.Expr:
    """Return moments since 1970 in the time unit of the corpus.

    Args:
        number: Whole or fractional numbers; what is no number becomes null.
        unit: Of the numbers: seconds, milliseconds or microseconds.
    """
    if _PER_SECOND[unit] <= TICKS_PER_SECOND:
        scaled = (number * (TICKS_PER_SECOND // _PER_SECOND[unit])).round()
    else:
        scaled = number // (_PER_SECOND[unit] // TICKS_PER_SECOND)
    return scaled.cast(pl.Int64, strict=False).alias("timestamp")


def no_interactions() -> pl.LazyFrame:
    """Return interactions of a source that has none."""
    return pl.LazyFrame(schema=SCHEMA)


def k_core(interactions: pl.DataFrame, minimum: int) -> pl.DataFrame:
    """Leave out users and items with few interactions until all that remain have enough.

    Args:
        interactions: Columns user_id and item_id; repeats count.
        minimum: Interactions that each user and each item must keep; 0 keeps everything.

    Returns:
        The largest subset in which every user and item has so many, rows in the given order.

    Source:
        Kang & McAuley 2018 (https://arxiv.org/abs/1808.09781); the 5-core files of
        https://jmcauley.ucsd.edu/data/amazon/ are made the same way.
    """
    before = -1
    while before != interactions.height and minimum > 0:
        before = interactions.height
        for column in ("user_id", "item_id"):
            interactions = interactions.filter(pl.len().over(column) >= minimum)
    return interactions
