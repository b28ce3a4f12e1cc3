"""Records of JSON or Python-literal lines, and the readable text of their values."""

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sidrec.corpus.reading.item_text import clean_text
from sidrec.errors import DataError

Record = dict[str, Any]


def read_records(
    file: Path,
    *,
    python_literals: bool = False,
    wanted: Callable[[bytes], bool] | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield the records of a file with one object a line, each with its place for messages.

    Half of a surrogate pair, which no UTF-8 file can hold, becomes a question mark.

    Args:
        file: JSON lines; gzipped where the name ends in ``.gz``. Empty lines are left out.
        python_literals: Also accept lines that are dictionaries as Python prints them. Such a line
            is parsed, never executed.
        wanted: Predicate on a line; lines for which it is false are left out before parsing.

    Raises:
        DataError: If the file is missing, its compression is damaged, or a line is not a record.
    """
    row = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for row, line in enumerate(stream, start=1):
                if line.strip() and (wanted is None or wanted(line)):
                    place = f"{file} row {row}"
                    yield place, _record(line, place, python_literals=python_literals)
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read after row {row} ({error}); the file is damaged or incomplete: "
            "download it again."
        ) from None


def _record(line: bytes, place: str, *, python_literals: bool) -> Record:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 ({error.reason}); save it as UTF-8.") from None
    kind = "a JSON object or a Python dictionary" if python_literals else "a JSON object"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        value = _literal(text) if python_literals else None
        if value is None:
            raise DataError(f"{place} is not {kind} ({error}); correct the line.") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: expected {kind}, found a {type(value).__name__}; correct the line."
        )
    if b"\\ud" in line.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return dict(value)


def _literal(text: str) -> object:
    try:
        value: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value


def required(record: Record, key: str, place: str, *, hint: str) -> str:
    """Return the value of a key as text.

    Args:
        record: One line of a file.
        key: Must have a value that is text or a number.
        place: File and row, for messages.
        hint: What to do where the key is missing.

    Raises:
        DataError: If the key is missing, or its value is empty or nested.
    """
    value = record.get(key)
    if isinstance(value, str | int | float) and str(value).strip():
        return str(value).strip()
    found = f"found {value!r}" if key in record else f"the row has {', '.join(record)}"
    raise DataError(f"{place}: expected text or a number as '{key}', {found}; {hint}")


def readable(value: object, *, between: str = " ") -> str:
    """Return a value as text of one line, without HTML.

    Args:
        value: Text, number, list, list of lists, or dictionary.
        between: Joins the elements of a list; lists within lists are joined by ``"; "``.

    Examples:
        >>> readable([["Beauty", "Hair Care"], ["Gifts"]], between=" > ")
        'Beauty > Hair Care; Gifts'
        >>> readable({"Color": "Red", "Size": None, "Parts": ["cap", "tube"]})
        'Color: Red; Parts: cap tube'
    """
    if value is None:
        return ""
    if isinstance(value, dict):
        pairs = ((key, readable(inner)) for key, inner in value.items())
        return "; ".join(f"{key}: {text}" for key, text in pairs if text)
    if isinstance(value, list | tuple):
        parts = [text for inner in value if (text := readable(inner, between=between))]
        nested = any(isinstance(inner, list | tuple) for inner in value)
        return ("; " if nested else between).join(dict.fromkeys(parts))
    return clean_text(str(value))


def sentences(parts: Iterable[str]) -> str:
    """Join parts into one text, each ended by a period unless it ends in a mark of its own.

    Examples:
        >>> sentences(["Strong glue", "", "Dries fast!", "Price: 3"])
        'Strong glue. Dries fast! Price: 3.'
    """
    return " ".join(part if part[-1] in ".!?…" else f"{part}." for part in parts if part)
