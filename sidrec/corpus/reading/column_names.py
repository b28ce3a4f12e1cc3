"""Names of columns, and refusals of tables that lack them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import polars as pl

from sidrec.errors import DataError


@dataclass(frozen=True)  # no slots: jsonargparse reads __dict__
class Columns:
    """Names that the columns have in the user's tables.

    Attributes:
        item_id: The catalogue's own id of an item, in every table.
        title: Title of an item.
        text: Text of an item.
        user_id: Who interacted.
        timestamp: When.
        rating: Rating of an interaction.
        query_id: Id of a query.
        query: Text of a query.
        item_ids: Answers of a query.
        group: Shared by a query and its paraphrases.
        split: Split of a query.
    """

    item_id: str = "item_id"
    title: str = "title"
    text: str = "text"
    user_id: str = "user_id"
    timestamp: str = "timestamp"
    rating: str = "rating"
    query_id: str = "query_id"
    query: str = "query"
    item_ids: str = "item_ids"
    group: str = "group"
    split: str = "split"


DEFAULT_COLUMNS = Columns()
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
