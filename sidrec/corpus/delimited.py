"""Delimited files of a known layout, scanned as text."""

from pathlib import Path

import polars as pl

from sidrec.corpus.check import reading, require_columns
from sidrec.errors import DataError


def scan_text(
    file: Path, columns: tuple[str, ...], *, separator: str = ",", quote: str | None = '"'
) -> pl.LazyFrame:
    """Scan a delimited file, every column as text.

    Args:
        file: With a header.
        columns: Those that it must have.
        separator: Between two values.
        quote: Around values that hold a separator; None: nothing is quoted.

    Raises:
        DataError: If the file is missing, empty, cannot be read, or lacks a column.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist; the layout needs it.")
    with reading(str(file)):
        frame = pl.scan_csv(file, separator=separator, infer_schema=False, quote_char=quote)
        require_columns(str(file), frame.collect_schema().names(), columns)
    return frame
