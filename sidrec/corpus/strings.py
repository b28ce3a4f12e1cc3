"""Texts of a memory-mapped column, made into strings of Python only where they are read."""

from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

_ROWS_AT_ONCE = 4_096


class ColumnStrings(Sequence[str]):
    """A column of strings as a sequence; a slice of it is one too and copies nothing.

    Args:
        column: Without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "ColumnStrings": ...
    def __getitem__(self, place: "int | slice") -> "str | ColumnStrings":
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"a column is sliced with step 1, got {step}")
            return ColumnStrings(self._column.slice(first, max(0, end - first)))
        text: str = self._column[place].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._column.slice(first, _ROWS_AT_ONCE).to_pylist()
