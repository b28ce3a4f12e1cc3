"""What is known of an item beside its text: the material that queries are written from."""

from typing import Any, NamedTuple

import polars as pl


class ItemFacts(NamedTuple):
    """Facts of one item.

    Attributes:
        item_id: The catalogue's own id.
        title: Title; a query must not contain it.
        year: Year of release, ``None`` where unknown.
        genres: Genres or categories, possibly none.
        tags: Tags, those that say most first, possibly none.
        description: Free text, possibly empty.
    """

    item_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]
    tags: tuple[str, ...]
    description: str


def facts_of(items: pl.DataFrame) -> list[ItemFacts]:
    """Read the facts of every item of a catalogue.

    Args:
        items: Columns item_id, title, text, and where present year, genres, tags, genome_tags
            (lists, or text parted by ``|``) and description. A catalogue without a description
            column has its text taken for one.

    Returns:
        One record per row, in the order of the rows.
    """
    description = "description" if "description" in items.columns else "text"
    return [
        ItemFacts(
            str(row["item_id"]),
            row["title"] or "",
            _year(row.get("year")),
            _words(row.get("genres")),
            tuple(dict.fromkeys(_words(row.get("tags")) + _words(row.get("genome_tags")))),
            row.get(description) or "",
        )
        for row in items.iter_rows(named=True)
    ]


def _year(value: Any) -> int | None:  # noqa: ANN401
    try:
        return int(value) or None
    except (TypeError, ValueError):
        return None


def _words(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    parts = value.split("|") if isinstance(value, str) else value or ()
    return tuple(word for part in parts if (word := str(part).strip()))
