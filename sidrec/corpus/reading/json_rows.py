"""JSON lines, read strictly: numbers as written, late columns, no value outside JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sidrec.corpus.reading.compressed import FileRows, open_bytes
from sidrec.errors import DataError

_ROWS_AT_ONCE = 20_000


class WrittenFloat(float):
    """Float that keeps its written form."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        """Parse a number; one beyond the range of floats is refused."""
        number = super().__new__(cls, text)
        number.text = text
        if math.isinf(number):
            raise ValueError(f"{text[:20]} is too large for a number")
        return number


class _NoNumberError(ValueError):
    """NaN or Infinity, which JSON lacks."""


def json_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line that is not blank, and its object.

    Raises:
        DataError: If a line is not an object, holds NaN or Infinity, a key twice, or half of a
            surrogate pair; the message names file, line and key.
    """
    decoder = json.JSONDecoder(
        parse_float=WrittenFloat, parse_constant=_refuse, object_pairs_hook=_once
    )
    number = 0
    with open_bytes(file) as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            place = f"{file}, line {number}"
            row = _decoded(raw, file, number, decoder)
            if not isinstance(row, dict):
                raise DataError(f"{place}: expected an object, found {type(row).__name__}.")
            yield number, row


def text_of(value: Any, place: str, key: str) -> str | None:  # noqa: ANN401
    """Return a text or number as it was written.

    Raises:
        DataError: If it is a list, an object, true or false.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{place}: '{key}' is {json.dumps(value)[:60]}, expected one text or number; write it anew."
    )


def read_json_text(
    file: Path, columns: Sequence[str], read: list[FileRows]
) -> Iterator[pl.DataFrame]:
    """Yield some columns of a file as text; a column that no row has is left out."""
    batch: list[list[str | None]] = []
    seen: set[str] = set()
    number = rows = 0
    for number, row in json_objects(file):
        seen |= row.keys()
        place = f"{file}, line {number}"
        batch.append([text_of(row.get(name), place, name) for name in columns])
        rows += 1
        if len(batch) == _ROWS_AT_ONCE:
            yield pl.DataFrame(batch, schema=dict.fromkeys(columns, pl.String), orient="row")
            batch = []
    yield pl.DataFrame(batch, schema=dict.fromkeys(columns, pl.String), orient="row")
    missing = [name for name in columns if name not in seen]
    if missing and rows == 0:
        raise DataError(f"{file} cannot be read: it is empty; write one object a line.")
    read.append(FileRows(file, rows, number))


def read_json_table(file: Path, texts: Sequence[str], read: list[FileRows]) -> pl.DataFrame:
    """Return all columns of a file, each of the one type that holds all its values.

    Args:
        file: One object a line.
        texts: Columns whose numbers are kept as they were written.
        read: Receives the number of rows and lines.
    """
    batches: list[list[dict[str, Any]]] = []
    kinds: dict[str, Any] = {}
    number = rows = 0
    for number, row in json_objects(file):  # noqa: B007
        for name, value in row.items():
            if name in texts and isinstance(value, int | float) and not isinstance(value, bool):
                row[name] = value = text_of(value, "", name)
            kinds[name] = _merged(kinds.get(name, pl.Null), _kind(value))
        if rows % _ROWS_AT_ONCE == 0:
            batches.append([])
        batches[-1].append(row)
        rows += 1
    if not rows:
        raise DataError(f"{file} cannot be read: it is empty; write one object a line.")
    read.append(FileRows(file, rows, number))
    frames = []
    while batches:
        part = batches.pop(0)
        frames.append(
            pl.DataFrame(
                [
                    _column(name, [row.get(name) for row in part], kind)
                    for name, kind in kinds.items()
                ]
            )
        )
    return pl.concat(frames)


def _decoded(raw: bytes, file: Path, number: int, decoder: json.JSONDecoder) -> Any:  # noqa: ANN401
    place = f"{file}, line {number}"
    try:
        text = raw.decode("utf-8-sig")
        row = decoder.decode(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise DataError(
            f"{place}: has an unpaired surrogate ({half}); write the whole pair or remove it."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 (line {number}: {error}); save it as UTF-8."
        ) from None
    except _NoNumberError as error:
        key = _key_of_constant(text)
        raise DataError(
            f"{place}: key '{key}' is {error}, which JSON lacks; write null or a number."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); write one object a line.") from None
    return row


def _refuse(constant: str) -> float:
    raise _NoNumberError(constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        doubled = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"key '{doubled}' appears twice in one object")
    return row


def _key_of_constant(text: str) -> str:
    mark = object()

    def holds(value: object) -> bool:
        if isinstance(value, dict):
            return any(map(holds, value.values()))
        return value is mark or (isinstance(value, list) and any(map(holds, value)))

    row = json.loads(text, parse_constant=lambda _: mark)
    return next((key for key, value in row.items() if holds(value)), "") if row else ""


_JSON = "json"  # kind of a column whose values have no common type: kept as JSON text


def _kind(value: Any) -> Any:  # noqa: ANN401
    if value is None:
        return pl.Null
    if isinstance(value, bool):
        return pl.Boolean
    if isinstance(value, int):
        return pl.Int64 if -(2**63) <= value < 2**63 else _JSON
    if isinstance(value, float):
        return pl.Float64
    if isinstance(value, str):
        return pl.String
    if isinstance(value, list):
        inner: Any = pl.Null
        for one in value:
            inner = _merged(inner, _kind(one))
        return _JSON if inner == _JSON else ("list", inner)
    return _JSON


def _merged(one: Any, other: Any) -> Any:  # noqa: ANN401
    if one == other or other == pl.Null:
        return one
    if one == pl.Null:
        return other
    if {one, other} == {pl.Int64, pl.Float64}:
        return pl.Float64
    if isinstance(one, tuple) and isinstance(other, tuple):
        inner = _merged(one[1], other[1])
        return _JSON if inner == _JSON else ("list", inner)
    return _JSON


def _column(name: str, values: list[Any], kind: Any) -> pl.Series:  # noqa: ANN401
    if kind == _JSON:
        values = [
            value
            if value is None or isinstance(value, str)
            else json.dumps(value, ensure_ascii=False)
            for value in values
        ]
        return pl.Series(name, values, dtype=pl.String)
    return pl.Series(name, values, dtype=_dtype(kind), strict=False)


def _dtype(kind: Any) -> Any:  # noqa: ANN401
    if isinstance(kind, tuple):
        return pl.List(_dtype(kind[1]))
    return pl.String if kind == pl.Null else kind
