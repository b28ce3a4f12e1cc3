"""``sidrec prepare amazon | recbole | beir | clicks``: files in a known layout -> corpus."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sidrec.corpus.prepare_settings import (
    DEFAULT_FIELDS,
    BuildSettings,
    Generation,
    MissingTitles,
    RecBoleFields,
    TextField,
    TimeUnit,
)
from sidrec.corpus.queries.selection import DEFAULT_WRITING, QueryWriting
from sidrec.corpus.reading.column_names import DEFAULT_LOG_COLUMNS, LogColumns

_TEXT_FIELDS: list[TextField] = [
    *("title", "brand", "categories", "price", "features", "description"),
]


def amazon(
    source: str,
    generation: Generation,
    out: Path,
    text_fields: list[TextField] = _TEXT_FIELDS,
    missing_titles: MissingTitles = "fill",
    core: int = 5,
    queries: list[Path] | None = None,
    write_queries: str | None = None,
    writer: QueryWriting = DEFAULT_WRITING,
    **build: Any,  # noqa: ANN401 (jsonargparse reads the fields of BuildSettings)
) -> None:
    """Make a corpus of one category of Amazon reviews.

    Args:
        source: A category such as Beauty (downloaded, resumable, cached), or a folder with its
            review file and its meta_ file.
        generation: Collection of the category: 2014, 2018 or 2023.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        text_fields: What an item's text is made of, in this order.
        missing_titles: Of products without a title. fill: make one from the other fields. keep:
            leave it empty. drop: leave the product out.
        core: Reviews that each user and item has at least, filtered repeatedly; 0 keeps all.
        queries: One or more JSONL files of {"query_id", "query", "item_ids", "group", "split"}.
        write_queries: Write queries: template (from metadata), hf:MODEL or openai:URL.
        writer: How a writer writes.
        build: How to split and filter.
    """
    from sidrec.cli.preparing.prepare import build_with_queries
    from sidrec.corpus.reading.download import default_cache_folder
    from sidrec.corpus.sources.amazon import read_amazon
    from sidrec.corpus.sources.amazon_files import locate_amazon

    settings = BuildSettings(**build)
    raw = read_amazon(
        locate_amazon(source, generation, cache_folder=default_cache_folder()),
        generation=generation,
        text_fields=text_fields,
        missing_titles=missing_titles,
        core=core,
    )
    build_with_queries(raw, out, settings, queries, write_queries, writer, packaged=False)


def recbole(
    source: Path,
    out: Path,
    fields: RecBoleFields = DEFAULT_FIELDS,
    text_fields: list[str] | None = None,
    time_unit: TimeUnit = "s",
    core: int = 0,
    queries: list[Path] | None = None,
    write_queries: str | None = None,
    writer: QueryWriting = DEFAULT_WRITING,
    **build: Any,  # noqa: ANN401
) -> None:
    """Make a corpus of a data set in RecBole's format.

    Args:
        source: Folder with NAME.inter and, where there are any, NAME.item and NAME.user.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        fields: Names of the fields that have a meaning.
        text_fields: Fields of .item that follow the title in an item's text; null takes all that
            are token or token_seq.
        time_unit: Of the time field: s, ms or us.
        core: Interactions that each user and item has at least, filtered repeatedly; 0 keeps all.
        queries: One or more JSONL files of {"query_id", "query", "item_ids", "group", "split"}.
        write_queries: Write queries: template (from metadata), hf:MODEL or openai:URL.
        writer: How a writer writes.
        build: How to split and filter.
    """
    from sidrec.cli.preparing.prepare import build_with_queries
    from sidrec.corpus.sources.recbole import read_recbole

    settings = BuildSettings(**build)
    raw = read_recbole(
        source, fields=fields, text_fields=text_fields, time_unit=time_unit, core=core
    )
    build_with_queries(raw, out, settings, queries, write_queries, writer, packaged=False)


def beir(
    source: Path,
    out: Path,
    keep_splits: bool = True,
    test_query_fraction: float = 0.2,
    valid_query_fraction: float = 0.05,
    unknown_items: Literal["error", "drop"] = "error",
    cold_item_fraction: float = 0.0,
) -> None:
    """Make a corpus of a BEIR folder: documents and judged queries, no interactions.

    It trains search alone: set the share of the recommendation task to 0.

    Args:
        source: Folder with corpus.jsonl, queries.jsonl and qrels/train.tsv, dev.tsv or test.tsv.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        keep_splits: Whether a query's split is that of its qrels file; dev is valid.
        test_query_fraction: Share of the queries that is test, where the splits are not kept.
        valid_query_fraction: Share of the train queries that is used as valid, where there is no
            qrels/dev.tsv or the splits are not kept.
        unknown_items: What to do with judgments of documents or queries that are not listed.
        cold_item_fraction: Share of the documents that training never sees, for cold-start figures.
    """
    from sidrec.cli.preparing.prepare import build_and_report
    from sidrec.corpus.sources.beir import read_beir

    raw, queries = read_beir(source, keep_splits=keep_splits, unknown_items=unknown_items)
    has_valid = any(query.split == "valid" for query in queries)
    settings = BuildSettings(
        test_query_fraction=test_query_fraction,
        valid_query_fraction=0.0 if has_valid else valid_query_fraction,
        unknown_items=unknown_items,
        cold_item_fraction=cold_item_fraction,
    )
    build_and_report(raw, queries, out, settings)


def clicks(
    log: str,
    items: str,
    out: Path,
    event_weights: dict[str, float] = {"click": 1.0},  # noqa: B006 (never changed)
    min_pair_events: int = 1,
    min_query_events: int = 1,
    min_item_events: int = 0,
    position_exponent: float = 0.0,
    split: Literal["leave_last_out", "temporal"] = "temporal",
    temporal_fractions: tuple[float, float] = (0.1, 0.1),
    test_query_fraction: float = 0.2,
    valid_query_fraction: float = 0.05,
    unknown_items: Literal["error", "drop"] = "error",
    cold_item_fraction: float = 0.0,
    columns: LogColumns = DEFAULT_LOG_COLUMNS,
) -> None:
    """Make a corpus of a search log: queries and interactions from the same events.

    Args:
        log: Columns user_id, query, item_id, timestamp, and optionally event and position; one
            row an event. A file, a pattern (logs/*.parquet) or an address that fsspec knows.
        items: Columns item_id, title, text; others become attributes.
        out: Corpus directory to write; an older corpus there is replaced as a whole.
        event_weights: Weight of each kind of event; other kinds are left out.
        min_pair_events: Events that a query needs with an item to be answered by it.
        min_query_events: Events that a query needs with such items in all.
        min_item_events: Events that an item needs to be in the corpus; 0 keeps every item.
        position_exponent: An event at position p counts p ** exponent times; 0 ignores positions.
        split: temporal: the latest interactions are test, and queries first asked then.
            leave_last_out: per user the last interaction is test; queries are shared out by a
            hash, whatever their time.
        temporal_fractions: Shares of the interactions that are test and valid; for temporal.
        test_query_fraction: Share of the queries that is test; for leave_last_out.
        valid_query_fraction: Share of the train queries that is valid; for leave_last_out.
        unknown_items: What to do with events of items that are not listed.
        cold_item_fraction: Share of the items that training never sees, for cold-start figures.
        columns: Names of the columns in your log and in the table of items.
    """
    from sidrec.cli.preparing.prepare import build_and_report
    from sidrec.corpus.reading.shards import local_shards
    from sidrec.corpus.sources.clicks import ClickSettings, read_clicks

    settings = BuildSettings(
        0,
        split,
        temporal_fractions,
        test_query_fraction,
        valid_query_fraction,
        unknown_items,
        cold_item_fraction=cold_item_fraction,
    )
    counted = ClickSettings(
        event_weights, min_pair_events, min_query_events, min_item_events, position_exponent
    )
    with local_shards(log, near=out) as logged, local_shards(items, near=out) as listed:
        raw, queries = read_clicks(logged, listed, counted, settings, columns)
        if split == "temporal":  # time alone decides which queries are valid
            settings = replace(settings, valid_query_fraction=0.0)
        build_and_report(raw, queries, out, settings)
