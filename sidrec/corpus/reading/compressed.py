"""Compressed tables: opening files and recognizing their format."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import pyarrow as pa

from sidrec.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".zst")


class FileRows(NamedTuple):
    """Row and line counts of one file of a table.

    Attributes:
        file: Path of the file.
        rows: Rows that were read.
        lines: Lines in the file, header included; None where the format has no lines.
    """

    file: Path
    rows: int
    lines: int | None


def format_of(file: Path) -> str:
    """Return the file name ending that gives the format, e.g. ``.csv`` of ``log.csv.gz``."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; ``.gz``, ``.bz2`` and ``.zst`` are decompressed on the way.

    Raises:
        DataError: If the file is missing, is a folder, or its compression is damaged.
    """
    ending = file.suffix.lower()
    try:
        if ending == ".zst":
            stream = cast(IO[bytes], pa.CompressedInputStream(str(file), "zstd"))
        elif ending in (".gz", ".bz2"):
            stream = cast(IO[bytes], gzip.open(file) if ending == ".gz" else bz2.open(file))  # noqa: SIM115
        else:
            stream = file.open("rb")
        with stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the path.") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{file} cannot be read: {reason}; check or write it again.") from None


def row_place(name: str, files: tuple[FileRows, ...], row: int) -> str:
    """Name a row of a table in several files, e.g. ``logs/b.csv row 3``.

    Args:
        name: Table as the user named it.
        files: Its files in order; empty where there is none.
        row: Counted over all files, from 1.

    Examples:
        >>> row_place("*.csv", (FileRows(Path("a.csv"), 2, 3), FileRows(Path("b.csv"), 4, 5)), 5)
        'b.csv row 3'
    """
    for file in files:
        if row <= file.rows:
            return f"{file.file} row {row}"
        row -= file.rows
    return f"{name} row {row}"
