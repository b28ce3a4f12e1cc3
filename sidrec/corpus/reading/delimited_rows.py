"""Delimited text, read strictly: a row without all its columns is refused by file and row."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from sidrec.corpus.reading.compressed import FileRows, open_bytes
from sidrec.errors import DataError

_CHUNK_BYTES = 1 << 23
_LONGEST_ROW = 1 << 26  # bytes; a longer quoted value has no closing quotation mark
_SHOWN = 60  # characters of a refused row
_ADVICE = {
    "stray": "a quotation mark inside a value; enclose the value in quotation marks and double "
    "those inside it (RFC 4180)",
    "open": "a value whose quotation mark is never closed; close it, or double it if it belongs "
    "to the value (RFC 4180)",
}


class _Rules(NamedTuple):
    """Row format of one file."""

    separator: str
    quoted: bool


def read_delimited(file: Path, separator: str, read: list[FileRows]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file with a header, every column as text, empty values as null.

    A comma-separated file is quoted as RFC 4180 says. A tab-separated file has no quoting: its
    values are read literally, unless its header is in quotation marks.

    Args:
        file: UTF-8, plain or compressed.
        separator: One character.
        read: Receives the number of rows and lines after the file is read.

    Raises:
        DataError: If the file is empty, not UTF-8, has a column twice, or a row breaks the rules.
    """
    names: list[str] = []
    rules = _Rules(separator, separator == ",")
    rows = lines = 0
    with open_bytes(file) as stream:
        rest = stream.read(3).removeprefix(b"\xef\xbb\xbf")
        ended = False
        while not ended:
            data = stream.read(_CHUNK_BYTES)
            ended = not data
            lines += data.count(b"\n")
            rest = rest + data
            if not names and rest:
                rules = rules._replace(quoted=rules.quoted or b'"' in rest.split(b"\n", 1)[0])
            end, fault = _end_of_rows(rest, rules, ended=ended)
            if fault or (len(rest) - end > _LONGEST_ROW):
                row = rows + len(_parsed(rest[:end], names or None, rules, file, rows))
                where = f"row {row + 1}" if names or end else "header"
                raise DataError(f"{file} {where} has {_ADVICE[fault or 'open']}.")
            chunk, rest = rest[:end], rest[end:]
            if not names and chunk:
                names, chunk = _header(chunk, rules, file)
            if names:
                frame = _parsed(chunk, names, rules, file, rows)
                rows += frame.height
                yield frame
    if not names:
        raise DataError(f"{file} cannot be read: it is empty; it needs a header and rows.")
    read.append(FileRows(file, rows, lines + 1 if chunk and not chunk.endswith(b"\n") else lines))


def _end_of_rows(data: bytes, rules: _Rules, *, ended: bool) -> tuple[int, str]:
    """Return the end of the last complete row, and the problem of the row after it."""
    if not rules.quoted or b'"' not in data:
        return (len(data) if ended else data.rfind(b"\n") + 1), ""
    row, rows = _patterns(rules.separator)
    end = found = rows.match(data).end()  # type: ignore[union-attr]
    if end < len(data):
        found = row.match(data, end).end()  # type: ignore[union-attr]
    after = data[found : found + 2]
    if after in (b"", b"\r"):  # the row is valid so far
        return (len(data) if ended else end), ""
    at_start = found == end or data[found - 1 : found] == rules.separator.encode()
    if after.startswith(b'"') and at_start:
        return end, "open" if ended else ""
    return end, "stray"


def _patterns(separator: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    mark = re.escape(separator)
    value = rf'(?:"[^"]*+(?:""[^"]*+)*+"|[^"\r\n{mark}]*+)'
    row = rf"{value}(?:{mark}{value})*+"
    return re.compile(row.encode()), re.compile(rf"(?:{row}\r?\n)*+".encode())


def _header(chunk: bytes, rules: _Rules, file: Path) -> tuple[list[str], bytes]:
    end = chunk.find(b"\n") + 1 or len(chunk)
    if rules.quoted and b'"' in chunk[:end]:
        row, _ = _patterns(rules.separator)
        end = chunk.find(b"\n", row.match(chunk).end()) + 1 or len(chunk)  # type: ignore[union-attr]
    try:
        text = chunk[:end].decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from None
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if rules.quoted else csv.QUOTE_NONE
    names = next(csv.reader([text], delimiter=rules.separator, quoting=quoting), [])
    doubled = [name for place, name in enumerate(names) if name in names[:place]]
    if doubled:
        raise DataError(f"{file} has two columns '{doubled[0]}'; rename one or remove it.")
    return names, chunk[end:]


def _parsed(
    chunk: bytes, names: list[str] | None, rules: _Rules, file: Path, rows_before: int
) -> pl.DataFrame:
    if not chunk.strip(b"\r\n"):
        return pl.DataFrame(schema=dict.fromkeys(names or [], pl.String))
    wrong: list[pa_csv.InvalidRow] = []

    def note(row: pa_csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    try:
        table = pa_csv.read_csv(
            pa.BufferReader(chunk),
            pa_csv.ReadOptions(use_threads=False, column_names=names, block_size=len(chunk) + 1),
            pa_csv.ParseOptions(
                delimiter=rules.separator,
                quote_char='"' if rules.quoted else False,
                newlines_in_values=rules.quoted,
                invalid_row_handler=note,
            ),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(names or [], pa.string())),
        )
    except pa.ArrowException as error:
        bad = _not_utf8(chunk)
        if bad is None:
            raise DataError(f"{file} cannot be read: {error}; check or write it again.") from None
        row = rows_before + chunk[:bad].count(b"\n") + 1
        raise DataError(f"{file} is not UTF-8 (near row {row}); save it as UTF-8.") from None
    if wrong:
        first = wrong[0]
        row = rows_before + (first.number or 1)
        raise DataError(
            f"{file} row {row} has {first.actual_columns} values, expected "
            f"{first.expected_columns} ('{first.text[:_SHOWN]}'); correct the row or take it out."
        )
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


def _not_utf8(data: bytes) -> int | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None
