"""Read anybody's catalogue from CSV, TSV, JSONL or Parquet tables."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl
import pyarrow.parquet as pq

from sidrec.corpus.sources.column_names import DEFAULT_COLUMNS, Columns
from sidrec.corpus.sources.compressed import FileRows, format_of, row_place
from sidrec.corpus.sources.delimited_rows import read_delimited
from sidrec.corpus.sources.item_text import clean_text
from sidrec.corpus.sources.json_rows import read_json_table, read_json_text
from sidrec.corpus.sources.raw_catalogue import SPLITS, RawCatalogue, RawQuery, Split
from sidrec.corpus.sources.shards import Shards
from sidrec.corpus.sources.times import Timestamps, read_times
from sidrec.corpus.sources.validate import nearest_hint, reading, refuse_nested, require_columns
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
    interactions: Path | Shards,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    missing_title: MissingTitle = "refuse",
    timestamps: Timestamps = "auto",
    scratch: Path | None = None,
) -> RawCatalogue:
    """Read items and interactions from tables; the ending of the name says the format.

    Several files are one table.

    Args:
        items: Columns item_id, title and text; the rest become attributes. The text always begins
            with the title; without ``text`` it is made of the title and whatever describes the
            item (description, brand, categories …). Markup is taken out of titles and texts.
            Attributes that are objects become JSON text.
        interactions: Columns user_id, item_id, timestamp (see ``read_times``), and optionally
            rating.
        columns: What the columns are called.
        missing_title: Items without title but with other text: ``keep`` them without title,
            ``fill`` the title with the beginning of the text, ``drop`` them with their
            interactions, or ``refuse``.
        timestamps: Unit of numbers, or ``position``: the order of the rows is the order of time.
        scratch: Folder for a copy of interactions that are no Parquet; None: in memory.

    Raises:
        DataError: If a file cannot be read or lacks a column, or a row breaks the format.
    """
    items, interactions = _shards(items), _shards(interactions)
    read_items: list[FileRows] = []
    frame, left_out, filled = _read_items(items, columns, missing_title, read_items)
    read: list[FileRows] = []
    lazy, written = _scan_interactions(interactions, columns, timestamps, scratch, read)
    notes = {"times": written}
    if filled:
        notes["items without title"] = f"{filled:,} ({missing_title})"
    return RawCatalogue(
        frame,
        lazy,
        items.name,
        interactions.name,
        source=f"table {Path(items.name).name}",
        license=_LICENSE,
        item_files=tuple(read_items),
        interaction_files=tuple(read),
        left_out=left_out,
        notes=notes,
    )


def read_items(items: Path | Shards) -> pl.DataFrame:
    """Read the items of a table alone, as ``read_table`` does."""
    return _read_items(_shards(items))


def _shards(given: Path | Shards) -> Shards:
    return given if isinstance(given, Shards) else Shards(str(given), [given])


def read_query_table(file: Path, columns: Columns = DEFAULT_COLUMNS) -> list[RawQuery]:
    """Read queries from a CSV, TSV or Parquet table.

    Args:
        file: Columns query_id, query and item_ids (a list, or text parted by ``|``), and
            optionally group (default: the query_id) and split (default: the builder decides).
        columns: What the columns are called.

    Raises:
        DataError: If the file cannot be read, lacks a column, or names another split.
    """
    read: list[FileRows] = []
    frame = _renamed(_read_frame(_shards(file), read), columns, str(file))
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
        query_id = str(row["query_id"])
        queries.append(
            RawQuery(
                query_id,
                row["query"] or "",
                _answers(row["item_ids"], place),
                str(row.get("group") or query_id),
                split,
                file.name.split(".")[0] if format_of(file) != file.suffix else file.stem,
                place,
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
    table: Shards, columns: Columns, missing: MissingTitle, read: list[FileRows]
) -> tuple[pl.DataFrame, tuple[str, ...], int]:
    frame = _renamed(_read_frame(table, read), columns, table.name)
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
    """Return items with text of one line; strings of Python are made for a part at a time."""
    fixed = ("item_id", "title", "text")
    describing = [name for name in _DESCRIBING if name in frame.columns]
    sources = ["text"] if "text" in frame.columns else describing
    titles = [_joined(row) for row in frame.select("title").iter_rows()]
    rest = [_joined(row) for row in frame.select(sources).iter_rows()] if sources else titles
    if "text" in frame.columns:  # an empty one is refused, not replaced by the title
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
    """Put the title before a text that does not hold it."""
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


def _scan_interactions(
    table: Shards,
    columns: Columns,
    timestamps: Timestamps,
    scratch: Path | None,
    read: list[FileRows],
) -> tuple[pl.LazyFrame, str]:
    names = {name: getattr(columns, name) for name in ("user_id", "item_id", "timestamp", "rating")}
    wanted = [*names.values()]
    with reading(table.name):
        frame = _scan(table, wanted, scratch, read)
        present = frame.collect_schema().names()
    frame = _renamed(frame, columns, table.name)
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
    refuse_nested(table.name, frame, (*needed[:2], "rating"))
    rating = pl.lit(None, pl.Float32)
    if "rating" in schema:
        number = pl.col("rating").cast(pl.Float32, strict=False)
        no_number = number.is_null() & pl.col("rating").is_not_null()
        rating = pl.when(no_number).then(float("nan")).otherwise(number).cast(pl.Float32)
    if position:
        moment, written = pl.int_range(pl.len()).cast(pl.Int128) * 1000, "the position of the row"
    else:
        with reading(table.name):
            moment, written = read_times(frame, "timestamp", timestamps, table.name)
    within = (moment % 1000).cast(pl.Int16, strict=False).fill_null(0).alias("nanosecond")
    with reading(table.name):
        exact = frame.select((within != 0).any()).collect(engine="streaming").item()
    chosen = frame.select(
        pl.col("user_id").cast(pl.String),
        pl.col("item_id").cast(pl.String),
        (moment // 1000).cast(pl.Int64, strict=False).alias("timestamp"),
        rating.alias("rating"),
        *([within] if exact else []),
    )
    return chosen, written


def _scan(
    table: Shards, columns: list[str], scratch: Path | None, read: list[FileRows]
) -> pl.LazyFrame:
    """Scan some columns; Parquet where it lies, all else as text from a copy."""
    ending = _ending(table)
    if ending == ".parquet":
        return pl.concat(list(_parquet(table, read)), how="diagonal_relaxed")
    parts: list[pl.LazyFrame] = []
    header: list[str] = []
    for file in table.files:
        frames = _text_frames(file, ending, columns, read, header)
        if scratch is None:
            parts += [frame.lazy() for frame in frames]
            continue
        target = scratch / f"interactions-{len(list(scratch.iterdir())):06d}.parquet"
        writer: pq.ParquetWriter | None = None
        for frame in frames:
            part = frame.to_arrow()
            writer = writer or pq.ParquetWriter(target, part.schema, compression="lz4")
            writer.write_table(part)
        if writer is not None:
            writer.close()
        parts.append(pl.scan_parquet(target, glob=False, hive_partitioning=False))
    return pl.concat(parts, how="diagonal")


def _text_frames(
    file: Path, ending: str, columns: list[str], read: list[FileRows], header: list[str]
) -> Iterator[pl.DataFrame]:
    if ending in (".jsonl", ".ndjson"):
        yield from read_json_text(file, columns, read)
        return
    for frame in read_delimited(file, _separator(ending), read):
        _same_columns(frame, file, header)
        present = [name for name in columns if name in frame.columns]
        yield frame.select(present) if {*columns[:3]} <= {*present} else frame


def _read_frame(table: Shards, read: list[FileRows]) -> pl.DataFrame:
    """Return a whole table; of delimited text only numbers that keep their spelling are numbers."""
    ending = _ending(table)
    with reading(table.name):
        if ending == ".parquet":
            return pl.concat(list(_parquet(table, read)), how="diagonal_relaxed").collect()
        if ending in (".jsonl", ".ndjson"):
            frames = [read_json_table(file, _TEXTS, read) for file in table.files]
            return pl.concat(frames, how="diagonal_relaxed")
        frames, columns = [], list[str]()
        for file in table.files:
            for frame in read_delimited(file, _separator(ending), read):
                _same_columns(frame, file, columns)
                frames.append(frame)
        whole = pl.concat(frames)
        return whole.with_columns(_number(whole[name]) for name in columns)


def _same_columns(frame: pl.DataFrame, file: Path, header: list[str]) -> None:
    if not header:
        header.extend(frame.columns)
    if frame.columns != header:
        raise DataError(
            f"{file} has the columns {frame.columns}, the files before it have {header}; files of "
            "one table have the same columns in the same order."
        )


def _number(values: pl.Series) -> pl.Series:
    """Cast texts to numbers where each is written as the number is printed."""
    if values.name in _TEXTS or values.null_count() == len(values):
        return values
    for kind in (pl.Int64, pl.Float64):
        same = values.cast(kind, strict=False).cast(pl.String) == values
        if (same.fill_null(False) | values.is_null()).all():
            return values.cast(kind)
    return values


def _parquet(table: Shards, read: list[FileRows]) -> Iterator[pl.LazyFrame]:
    for file in table.files:
        if not file.is_file():
            raise DataError(f"{file} does not exist; check the path.")
        frame = pl.scan_parquet(file, glob=False, hive_partitioning=False)
        schema = frame.collect_schema()
        rows = int(frame.select(pl.len()).collect().item())
        binary = [name for name, kind in schema.items() if kind == pl.Binary]
        for name in binary:
            _refuse_odd_bytes(frame.select(name), file)
        read.append(FileRows(file, rows, None))
        yield frame.with_columns(pl.col(binary).cast(pl.String))


def _refuse_odd_bytes(column: pl.LazyFrame, file: Path) -> None:
    try:
        column.select(pl.all().cast(pl.String).null_count()).collect(engine="streaming")
    except pl.exceptions.PolarsError:
        for row, value in enumerate(column.collect().to_series(), start=1):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise DataError(
                    f"{file} row {row}: column '{column.collect_schema().names()[0]}' holds bytes "
                    "that are no UTF-8; write text, or leave the column out."
                ) from None


def _ending(table: Shards) -> str:
    for file in table.files:
        if not file.is_file():
            raise DataError(f"{file} does not exist; check the path.")
    endings = sorted({format_of(file) for file in table.files})
    if len(endings) > 1:
        raise DataError(f"{table.name} has files of several kinds {endings}; name those of one.")
    if endings[0] not in (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv"):
        raise DataError(
            f"{table.name} ends in '{endings[0]}'; give a .csv, .tsv, .jsonl or .parquet file; "
            "the first three may be compressed (.gz, .bz2, .zst)."
        )
    return endings[0]


def _separator(ending: str) -> str:
    return "\t" if ending == ".tsv" else ","


def _renamed(frame: Any, columns: Columns, name: str) -> Any:  # noqa: ANN401
    """Give columns sidrec's names; works on frames and lazy frames."""
    present = frame.collect_schema().names()
    new = {
        getattr(columns, field.name): field.name
        for field in fields(columns)
        if getattr(columns, field.name) in present and getattr(columns, field.name) != field.name
    }
    clash = [field for field in new.values() if field in present and field not in new]
    if clash:
        given = next(key for key, value in new.items() if value == clash[0])
        raise DataError(
            f"{name} has a column '{given}' and a column '{clash[0]}'; rename or leave out "
            f"'{clash[0]}', which is not the one of --columns.{clash[0]}."
        )
    return frame.rename(new)
