"""Tables of any format, scanned or read whole, with the rows of each file counted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from sidrec.corpus.reading.column_names import Columns, LogColumns
from sidrec.corpus.reading.compressed import FileRows, format_of
from sidrec.corpus.reading.delimited_rows import read_delimited
from sidrec.corpus.reading.json_rows import read_json_table, read_json_text
from sidrec.corpus.reading.shards import Shards
from sidrec.errors import DataError

_TEXTS = ("item_id", "title", "text", "query_id", "query", "group", "split", "user_id")


def scan_columns(
    table: Shards, columns: list[str], scratch: Path | None, read: list[FileRows]
) -> pl.LazyFrame:
    """Scan some columns: Parquet in place, other formats as text from a copy."""
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


def read_frame(table: Shards, read: list[FileRows]) -> pl.DataFrame:
    """Return a whole table; delimited text becomes a number only if it keeps its spelling."""
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
                    "that are not UTF-8; write text, or leave the column out."
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


def renamed(frame: Any, columns: Columns | LogColumns, name: str) -> Any:  # noqa: ANN401
    """Rename columns to sidrec's names; works on frames and lazy frames."""
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
            f"'{clash[0]}', which differs from the one of --columns.{clash[0]}."
        )
    return frame.rename(new)


_MEANINGS = ("item_id", "user_id", "query_id", "title", "text", "timestamp", "rating", "query")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what polars says about a damaged file into one line that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, UnicodeError) or "utf-8" in reason.lower():
            raise DataError(f"{name} is not UTF-8 ({reason}); save it as UTF-8.") from None
        raise DataError(f"{name} cannot be read: {reason}; check or write it again.") from None


def require_columns(name: str, found: Sequence[str], needed: Sequence[str]) -> None:
    """Check that a table has its columns; the error suggests the nearest name.

    Raises:
        DataError: If a column is missing.
    """
    for column in needed:
        if column not in found:
            hint = nearest_hint(column, found) or f"it has {list(found)}."
            raise DataError(f"{name} has no column '{column}'; {hint.strip()}")


def nearest_hint(column: str, found: Sequence[str]) -> str:
    """Return a hint at the nearest name that means nothing else to sidrec; empty without one."""
    near = get_close_matches(column, [name for name in found if name not in _MEANINGS], n=1)
    return f"did you mean '{near[0]}'? Rename it. " if near else ""


def refuse_nested(name: str, frame: pl.DataFrame | pl.LazyFrame, columns: Sequence[str]) -> None:
    """Check that columns hold one value a row.

    Raises:
        DataError: If one of ``columns`` holds lists, objects or bytes.
    """
    schema = frame.collect_schema()
    for column in columns:
        kind = schema.get(column)
        if kind is None:
            continue
        no_id = column.endswith("_id") and (kind.is_float() or kind == pl.Boolean)
        if kind.is_nested() or kind == pl.Binary or no_id:
            raise DataError(
                f"{name}: column '{column}' holds {kind}, expected one text or whole number a row; "
                "write it anew."
            )
