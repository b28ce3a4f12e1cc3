"""Raw catalogue: what readers pass to the builder, with the user's own ids, not indexed."""

import re
from typing import Literal, NamedTuple

import polars as pl

from sidrec.corpus.prepare_settings import TimeUnit
from sidrec.corpus.reading.compressed import FileRows, row_place
from sidrec.errors import DataError


class RawQuery(NamedTuple):
    """Raw query: its text and the items that answer it, before items are indexed.

    Attributes:
        query_id: Id, unique over all queries of a corpus.
        text: What the user typed; not empty.
        item_ids: The catalogue's own ids of the answers; at least one.
        group: Group that a query and its paraphrases share; a group never spans two splits.
        split: Split of the query; ``""`` lets the builder decide by a hash of the group.
        source: Origin of the query (file stem, ``template``, model name).
        place: File and line of the query, for messages; empty without a file.
        weights: Weight of each of ``item_ids`` as an answer, ``> 0``; empty: all alike. A
            training pair draws its item in proportion.
        grades: Relevance grade of each of ``item_ids``, 1 or more, the gain of nDCG; empty: all
            1. Without ``weights`` a training pair draws its item in proportion to the grade.
    """

    query_id: str
    text: str
    item_ids: tuple[str, ...]
    group: str
    split: Literal["train", "valid", "test", ""]
    source: str
    place: str = ""
    weights: tuple[float, ...] = ()
    grades: tuple[int, ...] = ()


def grades_of(value: object, num_items: int, place: str) -> tuple[int, ...]:
    """Return the relevance grades of a query's answers; none for an absent or empty value.

    Args:
        value: List of whole numbers, or text such as ``2|1``.
        num_items: Number of distinct answers of the query.
        place: File and row, for messages.

    Raises:
        DataError: If a grade is not a whole number of at least 1, or not each answer has one.
    """
    given = value.split("|") if isinstance(value, str) and value else value
    listed = given if isinstance(given, list) else [] if given in (None, "") else [given]
    grades = tuple(int(str(one)) for one in listed if re.fullmatch("[1-9][0-9]*", str(one).strip()))
    if len(grades) != len(listed) or (grades and len(grades) != num_items):
        raise DataError(
            f"{place}: grades is {str(value)[:60]}, expected a whole number of at least 1 for each "
            f"of the {num_items} items, each item named once; leave items of grade 0 out."
        )
    return grades


class RawCatalogue(NamedTuple):
    """Raw catalogue: items and interactions as read from a source.

    Attributes:
        items: item_id string, title string, text string, then attribute columns; row order
            becomes the order of item_index.
        interactions: user_id string, item_id string, timestamp int64 (microseconds since 1970),
            rating float32 or null, and optionally nanosecond int16 (0 to 999, orders within a
            microsecond) and weight float32 (``> 0``, how often training draws it); scanned lazily,
            row order is the order of the source and breaks ties.
        items_name: File of the items, for messages.
        interactions_name: File of the interactions, for messages; empty where the source has none,
            which makes a corpus for search alone.
        source: One word for the source, e.g. ``movielens``.
        license: What the publisher asks of those who use the data.
        item_files: Files of the items, in the order of their rows.
        interaction_files: Files of the interactions, in the order of their rows.
        left_out: item_id of the items that the reader left out; their interactions are left out
            too.
        notes: Notes on what the reader recognized or left out, for the summary.
    """

    items: pl.DataFrame
    interactions: pl.LazyFrame
    items_name: str
    interactions_name: str
    source: str
    license: str
    item_files: tuple[FileRows, ...] = ()
    interaction_files: tuple[FileRows, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: dict[str, str] | None = None

    def item_row(self, row: int) -> str:
        """Name a row of the items by file, counted from 1 over all files."""
        return row_place(self.items_name, self.item_files, row)

    def interaction_row(self, row: int) -> str:
        """Name a row of the interactions by file, counted from 1 over all files."""
        return row_place(self.interactions_name, self.interaction_files, row)


TICKS_PER_SECOND = 1_000_000  # of RawCatalogue.interactions.timestamp
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "rating": pl.Float32,
}


def timestamps(number: pl.Expr, unit: TimeUnit) -> pl.Expr:
    """Convert numbers to moments since 1970 in the time unit of the corpus.

    Args:
        number: Whole or fractional numbers; other values become null.
        unit: Unit of the numbers: seconds, milliseconds or microseconds.
    """
    if _PER_SECOND[unit] <= TICKS_PER_SECOND:
        scaled = (number * (TICKS_PER_SECOND // _PER_SECOND[unit])).round()
    else:
        scaled = number // (_PER_SECOND[unit] // TICKS_PER_SECOND)
    return scaled.cast(pl.Int64, strict=False).alias("timestamp")


def no_interactions() -> pl.LazyFrame:
    """Return an empty table of interactions, for a source without any."""
    return pl.LazyFrame(schema=SCHEMA)


def k_core(interactions: pl.DataFrame, minimum: int) -> pl.DataFrame:
    """Keep the k-core: leave out users and items until all that remain have enough interactions.

    Args:
        interactions: Columns user_id and item_id; repeats count.
        minimum: Interactions that each user and each item must keep; 0 keeps everything.

    Returns:
        The largest subset in which every user and item has that many, rows in the given order.

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
