"""Search logs: queries with weighted answers, and interactions from the same events."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

import polars as pl

from sidrec.console import say
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.reading.column_names import DEFAULT_LOG_COLUMNS, LogColumns
from sidrec.corpus.reading.shards import Shards
from sidrec.corpus.reading.table_scan import (
    reading,
    refuse_nested,
    renamed,
    require_columns,
    scan_columns,
)
from sidrec.corpus.reading.times import read_times
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery
from sidrec.corpus.sources.splits import TimeBounds, normalized, temporal, time_bounds
from sidrec.corpus.sources.user_tables import read_items
from sidrec.errors import ConfigError, DataError

_NEEDED = ("user_id", "query", "item_id", "timestamp")
_LICENSE = "the user's own log; its terms are not known to sidrec"


class ClickSettings(NamedTuple):
    """Click settings: weights and thresholds of the events in a search log.

    Attributes:
        event_weights: Weight of each kind of event, ``> 0``; other kinds are left out.
        min_pair_events: Events that a query needs with an item to be answered by it.
        min_query_events: Events that a query needs with such items in all.
        min_item_events: Events that an item needs to be in the corpus; 0 keeps every item.
        position_exponent: An event at position p weighs ``p ** position_exponent`` times as much,
            which makes up for the fewer people who see it; 0 ignores positions.
    """

    event_weights: Mapping[str, float]
    min_pair_events: int
    min_query_events: int
    min_item_events: int
    position_exponent: float


def read_clicks(
    log: Shards,
    items: Shards,
    clicks: ClickSettings,
    settings: BuildSettings,
    columns: LogColumns = DEFAULT_LOG_COLUMNS,
) -> tuple[RawCatalogue, list[RawQuery]]:
    """Read a log of events and the table of its items.

    Queries whose texts differ only in letter case, punctuation and spaces are one query. The weight
    of an item as answer of a query is the sum of the weights of their events. Events without a user
    count for queries only, events without a query for interactions only. Of consecutive events of
    one user with one item the first moment and the largest weight are kept.

    With ``split: temporal`` one cut in time divides interactions and queries: a query belongs to
    the split in which it is first asked, with the events of that split only. Therefore no event
    after the cut is in train, and no text is in two splits.

    Args:
        log: Columns user_id, query, item_id, timestamp, and optionally event and position
            (1 is the top); one row an event.
        items: As for ``sidrec prepare table``.
        clicks: Weights and thresholds of the events.
        settings: Build settings, of which the split and the treatment of unknown items matter here.
        columns: Column names of the log and of the items.

    Returns:
        The catalogue, with the weight of the event as rating and weight, and the queries.

    Raises:
        DataError: If a column is missing, or a value cannot be read; the message names the row.
        ConfigError: If a weight or count is out of range.
    """
    _check_settings(clicks)
    events = _weighted(_read_log(log, clicks, columns), log, clicks)
    catalogue = read_items(items, columns)
    known = events.filter(pl.col("item_id").is_in(catalogue["item_id"].implode()))
    _check_known(events, known, log, items, settings)
    known = known.filter(pl.len().over("item_id") >= clicks.min_item_events)
    if clicks.min_item_events:
        catalogue = catalogue.join(known, on="item_id", how="semi", maintain_order="left")
    interactions = _interactions(known)
    bounds = None
    if settings.split == "temporal":
        moments = interactions if interactions.height else known
        test, valid = settings.temporal_fractions
        bounds = time_bounds(
            moments.lazy().select("timestamp"), test_fraction=test, valid_fraction=valid
        )
    queries = _queries(known, clicks, bounds, log.name)
    say(
        f"clicks: {known.height:,} events of known items make {interactions.height:,} "
        f"interactions and {len(queries):,} queries"
    )
    raw = RawCatalogue(
        catalogue,
        interactions.lazy(),
        items.name,
        log.name if interactions.height else "",
        source=f"clicks {log.files[0].name}",
        license=_LICENSE,
    )
    return raw, queries


def _check_settings(clicks: ClickSettings) -> None:
    wrong = [name for name, weight in clicks.event_weights.items() if not weight > 0]
    if wrong or not clicks.event_weights:
        raise ConfigError(
            f"--event_weights must name events with weights above 0, got {clicks.event_weights}; "
            "leave out what does not count."
        )
    for name in ("min_pair_events", "min_query_events"):
        if getattr(clicks, name) < 1:
            raise ConfigError(f"--{name} must be 1 or more, got {getattr(clicks, name)}.")


def _read_log(log: Shards, clicks: ClickSettings, columns: LogColumns) -> pl.DataFrame:
    """Return row, user_id, query, item_id, timestamp, event and position of every event."""
    frame = _event_table(log, columns, _NEEDED, ("event", "position"))
    names = frame.columns
    if clicks.position_exponent and "position" not in names:
        raise DataError(
            f"{log.name} has no column 'position', which --position_exponent needs; add it, or "
            "leave the option out."
        )
    if "event" not in names and len(clicks.event_weights) > 1:
        raise DataError(
            f"{log.name} has no column 'event', but --event_weights names "
            f"{', '.join(clicks.event_weights)}; add the column, or name one kind of event."
        )
    only = next(iter(clicks.event_weights))
    event = pl.col("event") if "event" in names else pl.lit(only)
    position = pl.lit(1.0)
    if clicks.position_exponent:
        position = pl.col("position").cast(pl.Float64, strict=False)
    events = frame.select(*_NEEDED, event.alias("event"), position.alias("position"))
    events = events.with_row_index("row", offset=1)
    empty = {name: pl.col(name).fill_null("").str.strip_chars() == "" for name in _NEEDED[:3]}
    faults = {
        "column 'item_id' is empty": empty["item_id"],
        "columns 'user_id' and 'query' are both empty": empty["user_id"] & empty["query"],
        "column 'timestamp' is empty or no moment": pl.col("timestamp").is_null(),
        "column 'position' is no number of 1 or more": (pl.col("position") >= 1)
        .fill_null(value=False)
        .not_(),
    }
    for complaint, fault in faults.items():
        wrong = events.filter(fault)
        if wrong.height:
            raise DataError(
                f"{log.name} row {wrong['row'][0]}: {complaint} ({wrong.height} such rows); "
                "correct or take them out."
            )
    return events


def _weighted(events: pl.DataFrame, log: Shards, clicks: ClickSettings) -> pl.DataFrame:
    """Return the events that count, with their weights."""
    found = set(events["event"].unique())
    for name in clicks.event_weights:
        if name not in found:
            shown = sorted(str(event) for event in found)
            near = get_close_matches(name, shown, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(shown[:10])}."
            raise DataError(f"{log.name} has no event '{name}' of --event_weights; {hint}")
    counted = events.filter(pl.col("event").is_in(list(clicks.event_weights)))
    if found - set(clicks.event_weights):
        others = ", ".join(sorted(map(str, found - set(clicks.event_weights)))[:10])
        say(
            f"clicks: {events.height - counted.height:,} of {events.height:,} events are of kinds "
            f"without a weight ({others}), left out"
        )
    weight = pl.col("event").replace_strict(dict(clicks.event_weights), return_dtype=pl.Float64)
    return counted.with_columns(
        weight=weight * pl.col("position").pow(clicks.position_exponent), event_weight=weight
    )


def _check_known(
    events: pl.DataFrame, known: pl.DataFrame, log: Shards, items: Shards, settings: BuildSettings
) -> None:
    num_unknown = events.height - known.height
    if num_unknown and settings.unknown_items == "error":
        first = events.join(known.select("row"), on="row", how="anti", maintain_order="left")
        raise DataError(
            f"{log.name} row {first['row'][0]}: item_id '{first['item_id'][0]}' is not in "
            f"{items.name} ({num_unknown} such rows); add the items, or use --unknown_items drop."
        )
    if num_unknown:
        say(f"clicks: {num_unknown:,} events of items that {items.name} lacks, left out")


def _interactions(events: pl.DataFrame) -> pl.DataFrame:
    """Return one interaction for each run of events of one user with one item."""
    ordered = (
        events.filter(pl.col("user_id").fill_null("") != "")
        .sort("user_id", "timestamp", maintain_order=True)
        .with_columns(run=pl.struct("user_id", "item_id").rle_id())
    )
    runs = ordered.group_by("run", maintain_order=True).agg(
        pl.col("user_id", "item_id", "timestamp", "row").first(),
        pl.col("event_weight").max().cast(pl.Float32).alias("rating"),
    )
    columns = ("user_id", "item_id", "timestamp", "rating")
    return runs.sort("row").select(*columns, weight="rating")


def _queries(
    events: pl.DataFrame, clicks: ClickSettings, bounds: TimeBounds | None, name: str
) -> list[RawQuery]:
    asked = events.filter(pl.col("query").fill_null("").str.strip_chars() != "")
    texts = asked["query"].unique(maintain_order=True)
    keys = {text: normalized(text) for text in texts}
    asked = asked.with_columns(
        key=pl.col("query").replace_strict(keys, return_dtype=pl.String),
        split=pl.lit("") if bounds is None else temporal(bounds),
    )
    first = pl.col("split").sort_by("timestamp", "row").first().over("key")
    own = asked.filter(pl.col("split") == first)
    pairs = (
        own.group_by("key", "item_id", maintain_order=True)
        .agg(pl.len().alias("events"), pl.col("weight").sum())
        .filter(pl.col("events") >= clicks.min_pair_events)
        .filter(pl.col("events").sum().over("key") >= clicks.min_query_events)
    )
    answers = pairs.group_by("key", maintain_order=True).agg("item_id", "weight")
    facts = own.group_by("key").agg(
        pl.col("query", "split", "row").sort_by("timestamp", "row").first()
    )
    answered = answers.join(facts, on="key", how="left", maintain_order="left")
    num_pairs = own.select("key", "item_id").unique().height
    say(
        f"clicks: {asked['key'].n_unique():,} queries; left out {asked.height - own.height:,} "
        "events after the split in which their query was first asked, "
        f"{num_pairs - pairs.height:,} pairs with too few events"
    )
    return [
        RawQuery(
            f"click-{row['row']}",
            " ".join(row["query"].split()),
            tuple(row["item_id"]),
            row["key"],
            row["split"],
            "clicks",
            f"{name} row {row['row']}",
            tuple(row["weight"]),
        )
        for row in answered.iter_rows(named=True)
    ]


def _event_table(
    table: Shards, columns: LogColumns, needed: tuple[str, ...], optional: tuple[str, ...]
) -> pl.DataFrame:
    """Return columns of a log as text, timestamp in the time unit of the corpus.

    Args:
        table: The log; row order is kept.
        columns: Column names of the log.
        needed: Columns that it must have; timestamp is one of them.
        optional: Columns that it may have.

    Raises:
        DataError: If the log cannot be read, lacks a column, or a column holds lists or objects.
    """
    names = {name: getattr(columns, name) for name in (*needed, *optional)}
    with reading(table.name):
        frame = scan_columns(table, [*names.values()], None, [])
        present = frame.collect_schema().names()
    given = [own for name, own in names.items() if own != name]
    require_columns(table.name, present, given)  # named by --columns, so meant to be there
    events: pl.LazyFrame = renamed(frame, columns, table.name)
    found = events.collect_schema().names()
    require_columns(table.name, found, needed)
    chosen = [*needed, *(name for name in optional if name in found)]
    refuse_nested(table.name, events, chosen)
    with reading(table.name):
        moment, _ = read_times(events, "timestamp", "auto", table.name)
        return events.select(
            (moment // 1000).cast(pl.Int64, strict=False).alias(name)
            if name == "timestamp"
            else pl.col(name).cast(pl.String)
            for name in chosen
        ).collect(engine="streaming")
