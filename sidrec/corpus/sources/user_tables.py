"""Read anybody's catalogue from CSV, JSONL or Parquet tables."""

import csv
import json
from pathlib import Path
from typing import Literal, cast

import polars as pl

from sidrec.corpus.sources.item_text import clean_text
from sidrec.corpus.sources.raw_catalogue import SPLITS, RawCatalogue, RawQuery, Split
from sidrec.corpus.sources.shards import Shards
from sidrec.corpus.sources.validate import reading, refuse_nested, require_columns
from sidrec.errors import DataError

_DESCRIBING = (
    *("subtitle", "description", "abstract", "summary", "body", "brand", "author", "authors"),
    *("category", "categories", "genre", "genres", "tags", "keywords"),
)
_ITEMS_AT_ONCE = 100_000  # items whose strings are in Python at a time
_LICENSE = "the user's own data; its terms are not known to sidrec"


def read_table(items: Path | Shards, interactions: Path | Shards) -> RawCatalogue:
    """Read items and interactions from tables; the ending of the name says the format.

    Several files are one table; they share their columns, and rows are counted over all of them.

    Args:
        items: Columns item_id, title and text; the rest become attributes. Without ``text`` it is
            made of the title and whatever describes the item (description, brand, categories …).
            Tags, style rules and entities of HTML are taken out of titles and texts. Attributes
            that are objects become JSON text.
        interactions: Columns user_id, item_id, timestamp (seconds, or a date and time), and
            optionally rating.

    Raises:
        DataError: If a file cannot be read or lacks a column; the nearest column is suggested.
    """
    items, interactions = _shards(items), _shards(interactions)
    return RawCatalogue(
        _read_items(items),
        _scan_interactions(interactions),
        items.name,
        interactions.name,
        source=f"table {Path(items.name).name}",
        license=_LICENSE,
    )


def read_items(items: Path | Shards) -> pl.DataFrame:
    """Read the items of a table alone, as ``read_table`` does."""
    return _read_items(_shards(items))


def _shards(given: Path | Shards) -> Shards:
    return given if isinstance(given, Shards) else Shards(str(given), [given])


def read_query_table(file: Path) -> list[RawQuery]:
    """Read queries from a CSV, TSV or Parquet table.

    Args:
        file: Columns query_id, query and item_ids (a list, or text parted by ``|``), and
            optionally group (default: the query_id) and split (default: the builder decides).

    Raises:
        DataError: If the file cannot be read, lacks a column, or names another split.
    """
    with reading(str(file)):
        frame = _scan(_shards(file), all_text=True).collect()
    require_columns(str(file), frame.columns, ("query_id", "query", "item_ids"))
    refuse_nested(str(file), frame, ("query_id", "query", "group", "split"))
    queries = []
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        split = cast('Split | Literal[""]', row.get("split") or "")
        if split not in ("", *SPLITS):
            raise DataError(
                f"{file} row {number}: split '{split}' is none of {', '.join(SPLITS)}; correct it "
                "or leave it empty."
            )
        answers = row["item_ids"]
        answers = answers.split("|") if isinstance(answers, str) else answers or ()
        query_id = str(row["query_id"])
        queries.append(
            RawQuery(
                query_id,
                row["query"] or "",
                tuple(str(answer).strip() for answer in answers if str(answer).strip()),
                str(row.get("group") or query_id),
                split,
                file.stem,
                f"{file} row {number}",
            )
        )
    return queries


def _read_items(table: Shards) -> pl.DataFrame:
    with reading(table.name):
        frame = _scan(table).collect(engine="streaming")
    require_columns(table.name, frame.columns, ("item_id", "title"))
    refuse_nested(table.name, frame, ("item_id",))
    if "item_index" in frame.columns:
        raise DataError(
            f"{table.name}: column 'item_index' has a name that sidrec gives itself; rename the "
            "column."
        )
    parts = [_items_of(part) for part in frame.iter_slices(_ITEMS_AT_ONCE)]
    return pl.concat(parts) if parts else _items_of(frame)


def _items_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return items with text of one line; strings of Python are made for a part at a time."""
    fixed = ("item_id", "title", "text")
    describing = [name for name in _DESCRIBING if name in frame.columns]
    sources = ["text"] if "text" in frame.columns else ["title", *describing]
    texts = [_joined(row) for row in frame.select(sources).iter_rows()]
    titles = [_joined(row) for row in frame.select("title").iter_rows()]
    if "text" not in frame.columns:
        texts = [text if title else "" for title, text in zip(titles, texts, strict=True)]
    return pl.DataFrame(
        {
            "item_id": frame["item_id"].cast(pl.String),
            "title": pl.Series(titles, dtype=pl.String),
            "text": pl.Series(texts, dtype=pl.String),
            **{name: _attribute(frame[name]) for name in frame.columns if name not in fixed},
        }
    )


def _attribute(values: pl.Series) -> pl.Series:
    """Return values as they are, objects (also within lists) as JSON text."""
    kind: object = values.dtype
    while isinstance(kind, pl.List):
        kind = kind.inner
    if not isinstance(kind, pl.Struct | pl.Array):
        return values
    texts = [
        None if value is None else json.dumps(value, ensure_ascii=False, default=str)
        for value in values.to_list()
    ]
    return pl.Series(values.name, texts, dtype=pl.String)


def _joined(values: tuple[object, ...]) -> str:
    parts = []
    for value in values:
        words = ", ".join(map(str, value)) if isinstance(value, list) else value
        cleaned = "" if words is None else clean_text(str(words))
        if cleaned:
            parts.append(cleaned)
    return parts[0] if len(parts) == 1 else " ".join(_sentence(part) for part in parts)


def _sentence(text: str) -> str:
    return text if text[-1] in ".!?…" else text + "."


def _scan_interactions(table: Shards) -> pl.LazyFrame:
    with reading(table.name):
        frame = _scan(table, all_text=True)
        schema = frame.collect_schema()
    require_columns(table.name, schema.names(), ("user_id", "item_id", "timestamp"))
    refuse_nested(table.name, frame, ("user_id", "item_id", "timestamp", "rating"))
    rating = pl.lit(None, pl.Float32)
    if "rating" in schema:
        number = pl.col("rating").cast(pl.Float32, strict=False)
        no_number = number.is_null() & pl.col("rating").is_not_null()
        rating = pl.when(no_number).then(float("nan")).otherwise(number).cast(pl.Float32)
    return frame.select(
        pl.col("user_id").cast(pl.String),
        pl.col("item_id").cast(pl.String),
        _seconds(frame).alias("timestamp"),
        rating.alias("rating"),
    )


def _seconds(frame: pl.LazyFrame) -> pl.Expr:
    moment, found = pl.col("timestamp"), frame.collect_schema()["timestamp"]
    if found.is_temporal():
        return moment.cast(pl.Datetime("us")).dt.epoch("s")
    number = moment.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
    if found != pl.String:
        return number
    written = [
        moment.str.to_datetime(layout, strict=False, exact=True).dt.epoch("s")
        for layout in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d")
    ]
    return pl.coalesce(number, *written)


def _scan(table: Shards, *, all_text: bool = False) -> pl.LazyFrame:
    for file in table.files:
        if not file.is_file():
            raise DataError(f"{file} does not exist; check the path.")
    endings = sorted({file.suffix.lower() for file in table.files})
    if len(endings) > 1:
        raise DataError(f"{table.name} has files of several kinds {endings}; name those of one.")
    ending = endings[0]
    if ending == ".parquet":
        return pl.scan_parquet(table.files)
    if ending in (".jsonl", ".ndjson"):
        return pl.scan_ndjson(table.files, infer_schema_length=None)
    if ending in (".csv", ".tsv"):
        separator = "\t" if ending == ".tsv" else ","
        as_text = dict.fromkeys(("item_id", "title", "text"), pl.String)
        header = _header(table, separator)
        return pl.scan_csv(
            table.files,
            separator=separator,
            infer_schema=not all_text,
            infer_schema_length=None,
            schema_overrides=None
            if all_text
            else {name: kind for name, kind in as_text.items() if name in header},
        )
    raise DataError(f"{table.name} ends in '{ending}'; give a .csv, .tsv, .jsonl or .parquet file.")


def _header(table: Shards, separator: str) -> list[str]:
    """Return the column names of delimited texts; polars would rename doubled ones in silence."""
    names: list[str] = []
    for number, file in enumerate(table.files):
        with reading(str(file)), file.open(encoding="utf-8-sig", newline="") as stream:
            found = next(csv.reader(stream, delimiter=separator), [])
        doubled = [name for place, name in enumerate(found) if name in found[:place]]
        if doubled:
            raise DataError(
                f"{file} has two columns '{doubled[0]}'; rename one or take it out: nobody can "
                "tell which is meant."
            )
        if number and found != names:
            raise DataError(
                f"{file} has the columns {found}, {table.files[0]} has {names}; files of one table "
                "have the same columns in the same order."
            )
        names = found
    return names
