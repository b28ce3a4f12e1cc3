"""User tables: a catalogue from CSV, TSV, JSONL or Parquet files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl

from sidrec.corpus.reading.column_names import DEFAULT_COLUMNS, Columns, LogColumns
from sidrec.corpus.reading.compressed import FileRows, format_of, row_place
from sidrec.corpus.reading.item_text import clean_text
from sidrec.corpus.reading.shards import Shards
from sidrec.corpus.reading.table_scan import (
    nearest_hint,
    read_frame,
    reading,
    refuse_nested,
    renamed,
    require_columns,
    scan_columns,
)
from sidrec.corpus.reading.times import Timestamps, read_times
from sidrec.corpus.schema import SPLITS, Split
from sidrec.corpus.sources.raw_catalogue import (
    RawCatalogue,
    RawQuery,
    grades_of,
    no_interactions,
)
from sidrec.errors import DataError

MissingTitle = Literal["keep", "fill", "drop", "refuse"]

_DESCRIBING = (
    *("subtitle", "description", "abstract", "summary", "body", "brand", "author", "authors"),
    *("category", "categories", "genre", "genres", "tags", "keywords"),
)
_ITEMS_AT_ONCE = 100_000  # items whose strings are in Python at a time
_LICENSE = "the user's own data; its terms are not known to sidrec"
_TEXTS = ("item_id", "title", "text", "query_id", "query", "group", "split", "user_id")


def read_table(
    items: Path | Shards,
    interactions: Path | Shards | None,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    missing_title: MissingTitle = "refuse",
    timestamps: Timestamps = "auto",
    scratch: Path | None = None,
) -> RawCatalogue:
    """Read items and interactions from tables; the file name ending gives the format.

    Several files form one table.

    Args:
        items: Columns item_id, title and text; the rest become attributes. The text always begins
            with the title; without ``text`` it consists of the title and what describes the item
            (description, brand, categories …). Markup is taken out of titles and texts. Attributes
            that are objects become JSON text.
        interactions: Columns user_id, item_id, timestamp (see ``read_times``), and optionally
            rating; None for a catalogue without any.
        columns: Column names of the tables.
        missing_title: Items without title but with other text: ``keep`` them without title,
            ``fill`` the title with the beginning of the text, ``drop`` them with their
            interactions, or ``refuse``.
        timestamps: Unit of numbers, or ``position``: the order of the rows is the order of time.
        scratch: Folder for a copy of interactions that are not Parquet; None: in memory.

    Raises:
        DataError: If a file cannot be read or lacks a column, or a row breaks the format.
    """
    items = _shards(items)
    read_items: list[FileRows] = []
    frame, left_out, filled = _read_items(items, columns, missing_title, read_items)
    read: list[FileRows] = []
    lazy, name, notes = no_interactions(), "", dict[str, str]()
    if interactions is not None:
        interactions = _shards(interactions)
        lazy, written = scan_interactions(interactions, columns, timestamps, scratch, read)
        name, notes = interactions.name, {"times": written}
    if filled:
        notes["items without title"] = f"{filled:,} ({missing_title})"
    return RawCatalogue(
        frame,
        lazy,
        items.name,
        name,
        source=f"table {Path(items.name).name}",
        license=_LICENSE,
        item_files=tuple(read_items),
        interaction_files=tuple(read),
        left_out=left_out,
        notes=notes,
    )


def read_items(
    items: Path | Shards, columns: Columns | LogColumns = DEFAULT_COLUMNS
) -> pl.DataFrame:
    """Read only the items of a table, as ``read_table`` does."""
    return _read_items(_shards(items), columns, "keep", [])[0]


def _shards(given: Path | Shards) -> Shards:
    return given if isinstance(given, Shards) else Shards(str(given), [given])


def read_query_table(file: Path, columns: Columns = DEFAULT_COLUMNS) -> list[RawQuery]:
    """Read queries from a CSV, TSV or Parquet table.

    Args:
        file: Columns query_id, query and item_ids (a list, or text separated by ``|``), and
            optionally group (default: the query_id), split (default: the builder decides) and
            grades (a whole number for each item, as ``item_ids``).
        columns: Column names of the tables.

    Raises:
        DataError: If the file cannot be read, lacks a column, or names another split.
    """
    read: list[FileRows] = []
    frame = renamed(read_frame(_shards(file), read), columns, str(file))
    if "user_id" in frame.columns and "query_id" not in frame.columns:
        raise DataError(
            f"{file} has a column 'user_id' and no 'query_id': it is a log, not a list of queries; "
            "read it with sidrec prepare clicks, or give every query an id."
        )
    require_columns(str(file), frame.columns, ("query_id", "query", "item_ids"))
    refuse_nested(str(file), frame, ("query_id", "query", "group", "split"))
    queries = []
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        place = row_place(str(file), tuple(read), number)
        split = cast('Split | Literal[""]', row.get("split") or "")
        if split not in ("", *SPLITS):
            raise DataError(
                f"{place}: split '{split}' is none of {', '.join(SPLITS)}; correct it "
                "or leave it empty."
            )
        query_id, answers = str(row["query_id"]), _answers(row["item_ids"], place)
        queries.append(
            RawQuery(
                query_id,
                row["query"] or "",
                answers,
                str(row.get("group") or query_id),
                split,
                file.name.split(".")[0] if format_of(file) != file.suffix else file.stem,
                place,
                grades=grades_of(row.get("grades"), len(answers), place),
            )
        )
    return queries


def _answers(value: object, place: str) -> tuple[str, ...]:
    answers = value.split("|") if isinstance(value, str) else [] if value is None else value
    if not isinstance(answers, list) or any(
        isinstance(one, list | dict | float) for one in answers
    ):
        raise DataError(
            f"{place}: item_ids is {str(value)[:60]}, expected a list of ids, or text such as a|b; "
            "write it anew."
        )
    return tuple(str(answer).strip() for answer in answers if str(answer or "").strip())


def _read_items(
    table: Shards, columns: Columns | LogColumns, missing: MissingTitle, read: list[FileRows]
) -> tuple[pl.DataFrame, tuple[str, ...], int]:
    frame = renamed(read_frame(table, read), columns, table.name)
    require_columns(table.name, frame.columns, ("item_id", "title"))
    refuse_nested(table.name, frame, ("item_id",))
    if "item_index" in frame.columns:
        raise DataError(
            f"{table.name}: column 'item_index' has a name that sidrec gives itself; rename the "
            "column."
        )
    parts = [_items_of(part) for part in frame.iter_slices(_ITEMS_AT_ONCE)]
    found = pl.concat(parts, how="vertical_relaxed") if parts else _items_of(frame)
    bare = (found["title"] == "") & (found["text"] != "")
    if not bare.any():
        return found, (), 0
    if missing == "refuse":
        place = row_place(table.name, tuple(read), (bare.arg_max() or 0) + 1)
        raise DataError(
            f"{place}: column '{columns.title}' is empty ({bare.sum()} such rows); fill it in, or "
            "choose --missing_title keep, fill or drop."
        )
    if missing == "drop":
        return found.filter(~bare), tuple(found.filter(bare)["item_id"]), int(bare.sum())
    if missing == "fill":
        opening = pl.col("text").str.slice(0, 80).str.split(". ").list.first()
        found = found.with_columns(
            title=pl.when(pl.col("title") == "").then(opening).otherwise(pl.col("title"))
        )
    return found, (), int(bare.sum())


def _items_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return items with one-line texts; Python strings exist for one part at a time."""
    fixed = ("item_id", "title", "text")
    describing = [name for name in _DESCRIBING if name in frame.columns]
    sources = ["text"] if "text" in frame.columns else describing
    titles = [_joined(row) for row in frame.select("title").iter_rows()]
    rest = [_joined(row) for row in frame.select(sources).iter_rows()] if sources else titles
    if "text" in frame.columns:  # an empty text is refused, not replaced by the title
        texts = [_with_title(*pair) if pair[1] else "" for pair in zip(titles, rest, strict=True)]
    else:
        texts = [_with_title(*pair) for pair in zip(titles, rest, strict=True)]
    return pl.DataFrame(
        {
            "item_id": frame["item_id"].cast(pl.String),
            "title": pl.Series(titles, dtype=pl.String),
            "text": pl.Series(texts, dtype=pl.String),
            **{name: _attribute(frame[name]) for name in frame.columns if name not in fixed},
        }
    )


def _with_title(title: str, text: str) -> str:
    """Prepend the title to a text that does not contain it."""
    if not title or not text:
        return title or text
    words = re.escape(title.casefold())
    if re.search(rf"(?<!\w){words}(?!\w)", text.casefold()):
        return text
    return f"{_sentence(title)} {text}"


def _attribute(values: pl.Series) -> pl.Series:
    """Return values as they are, objects (also within lists) and odd types as text."""
    kind: Any = values.dtype
    while isinstance(kind, pl.List):
        kind = kind.inner
    plain = kind in (pl.String, pl.Boolean) or kind.is_float() or kind.is_signed_integer()
    if kind == pl.Int128 or kind.is_unsigned_integer() or not plain:
        if values.dtype == kind and kind.is_integer():
            small = values.cast(pl.Int64, strict=False)
            same = small.null_count() == values.null_count()
            return small if same else values.cast(pl.String)
        if values.dtype == kind and not kind.is_nested() and kind != pl.Object:
            texts = [None if value is None else str(value) for value in values.to_list()]
        else:
            texts = [
                None if value is None else json.dumps(value, ensure_ascii=False, default=str)
                for value in values.to_list()
            ]
        return pl.Series(values.name, texts, dtype=pl.String)
    return values


def _joined(values: tuple[object, ...]) -> str:
    cleaned = [clean_text(", ".join(_flat(value))) for value in values]
    parts = [part for part in cleaned if part]
    return parts[0] if len(parts) == 1 else " ".join(_sentence(part) for part in parts)


def _flat(value: object) -> Iterator[str]:
    """Yield the texts of a value: of a list, of lists within, of the values of an object."""
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield f"{key}: {', '.join(_flat(one))}"
    elif value is not None:
        yield str(value)


def _sentence(text: str) -> str:
    return text if text[-1] in ".!?…" else text + "."


def scan_interactions(
    table: Shards,
    columns: Columns,
    timestamps: Timestamps,
    scratch: Path | None,
    read: list[FileRows],
) -> tuple[pl.LazyFrame, str]:
    """Scan a table of interactions lazily; also return the format of its times."""
    known = ("user_id", "item_id", "timestamp", "rating", "weight")
    names = {name: getattr(columns, name) for name in known}
    wanted = [*names.values()]
    with reading(table.name):
        frame = scan_columns(table, wanted, scratch, read)
        present = frame.collect_schema().names()
    optional = [names[name] for name in ("rating", "weight") if names[name] != name]
    require_columns(table.name, present, optional)  # named by --columns, so meant to be there
    frame = renamed(frame, columns, table.name)
    schema = frame.collect_schema()
    position = timestamps == "position"
    needed = ("user_id", "item_id") if position else ("user_id", "item_id", "timestamp")
    if "timestamp" not in schema and not position and {"user_id", "item_id"} <= set(schema.names()):
        near = nearest_hint("timestamp", present)
        raise DataError(
            f"{table.name} has no column 'timestamp'; {near}where the order of the rows is the "
            "order of time, use --timestamps position."
        )
    require_columns(table.name, schema.names(), needed)
    refuse_nested(table.name, frame, (*needed[:2], "rating", "weight"))
    rating = _number("rating") if "rating" in schema else pl.lit(None, pl.Float32)
    if position:
        moment, written = pl.int_range(pl.len()).cast(pl.Int128) * 1000, "the position of the row"
    else:
        with reading(table.name):
            moment, written = read_times(frame, "timestamp", timestamps, table.name)
    within = (moment % 1000).cast(pl.Int16, strict=False).fill_null(0).alias("nanosecond")
    with reading(table.name):
        weighs = pl.col("weight").is_not_null() if "weight" in schema else pl.lit(value=False)
        found = frame.select(exact=(within != 0).any(), weighted=weighs.any())
        exact, weighted = found.collect(engine="streaming").row(0)
    chosen = frame.select(
        pl.col("user_id").cast(pl.String),
        pl.col("item_id").cast(pl.String),
        (moment // 1000).cast(pl.Int64, strict=False).alias("timestamp"),
        rating.alias("rating"),
        *([_number("weight")] if weighted else []),
        *([within] if exact else []),
    )
    return chosen, written


def _number(name: str) -> pl.Expr:
    """Return a column as numbers: NaN where it holds something else, null where it is empty."""
    number = pl.col(name).cast(pl.Float32, strict=False)
    no_number = number.is_null() & pl.col(name).is_not_null()
    return pl.when(no_number).then(float("nan")).otherwise(number).cast(pl.Float32).alias(name)
