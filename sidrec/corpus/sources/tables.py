"""User tables as other readers need them: the one place that knows how they are scanned."""

import polars as pl

from sidrec.corpus.sources.shards import Shards
from sidrec.corpus.sources.user_tables import _read_items, _scan, _scan_interactions, _seconds
from sidrec.corpus.sources.validate import reading, refuse_nested, require_columns


def item_table(table: Shards) -> pl.DataFrame:
    """Return item_id, title, text and attributes, as ``sidrec prepare table`` reads them."""
    return _read_items(table)


def interaction_table(table: Shards) -> pl.LazyFrame:
    """Return user_id, item_id, timestamp and rating, as ``sidrec prepare table`` reads them."""
    return _scan_interactions(table)


def event_table(table: Shards, needed: tuple[str, ...], optional: tuple[str, ...]) -> pl.DataFrame:
    """Return columns of a log as text, timestamp in the time unit of the corpus.

    Args:
        table: The log; row order is kept.
        needed: Columns that it must have; timestamp is one of them.
        optional: Columns that it may have.

    Raises:
        DataError: If the log cannot be read, lacks a column, or a column holds lists or objects.
    """
    with reading(table.name):
        frame = _scan(table, all_text=True)
        found = frame.collect_schema().names()
    require_columns(table.name, found, needed)
    chosen = [*needed, *(name for name in optional if name in found)]
    refuse_nested(table.name, frame, chosen)
    with reading(table.name):
        return frame.select(
            _seconds(frame).alias(name) if name == "timestamp" else pl.col(name).cast(pl.String)
            for name in chosen
        ).collect(engine="streaming")
