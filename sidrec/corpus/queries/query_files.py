"""Queries from files, and the packaged queries of sidrec."""

import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from sidrec.console import say
from sidrec.corpus.queries.title_match import TitledItem, match_titles
from sidrec.corpus.reading.json_rows import json_objects
from sidrec.corpus.schema import SPLITS
from sidrec.corpus.sources.raw_catalogue import RawQuery, grades_of
from sidrec.errors import DataError

PACKAGED = "queries_llm"

_TEXT_KEYS = ("query", "text")
_ITEM_KEYS = ("movieIds", "item_ids")
_KNOWN_KEYS = {"query_id", "group", "split", "grades", *_TEXT_KEYS, *_ITEM_KEYS}


class FilmQuery(NamedTuple):
    """Packaged query, which names its film by title and year and not by an id.

    Attributes:
        query_id: Unique id.
        text: The query.
        title: Title as MovieLens writes it, without the year.
        year: Year of release.
        group: Shared by a query and its paraphrase.
        split: ``train`` or ``test``.
    """

    query_id: str
    text: str
    title: str
    year: int
    group: str
    split: Literal["train", "valid", "test", ""]


def load_query_files(paths: Sequence[Path]) -> list[RawQuery]:
    """Read queries from JSONL files, one object a line.

    Keys: ``query_id``, ``query`` (or ``text``), ``movieIds`` (or ``item_ids``), and optionally
    ``group`` (default: the query_id), ``split`` (default: the builder decides) and ``grades``, a
    whole number of at least 1 for each item.

    Args:
        paths: The files; their stems become the queries' source.

    Returns:
        The queries in the order of the files and lines.

    Raises:
        DataError: If a line is not such an object, a query_id appears twice, or a group is in two
            splits; the message names file and line.
    """
    queries: list[RawQuery] = []
    first_place: dict[str, str] = {}
    split_of_group: dict[str, tuple[str, str]] = {}
    for path in paths:
        for place, row in _rows(path):
            query = _query(row, place, path.stem)
            if query.query_id in first_place:
                raise DataError(
                    f"{place}: query_id {query.query_id!r} was used before in "
                    f"{first_place[query.query_id]}; give every query its own."
                )
            first_place[query.query_id] = place
            split, other = split_of_group.setdefault(query.group, (query.split, place))
            if split != query.split:
                raise DataError(
                    f"{place}: group {query.group!r} is {query.split!r} here but {split!r} in "
                    f"{other}; a query and its paraphrases belong to one split."
                )
            queries.append(query)
    return queries


def packaged_queries(items: Iterable[TitledItem | tuple[str, str, int | None]]) -> list[RawQuery]:
    """Return the packaged queries for the films of a catalogue.

    There are 10,376 queries for 1,297 films. Films match by title and year, so any MovieLens
    edition works. The function reports how many were found.

    Args:
        items: item_id, title, year (``None``: the year at the end of the title counts).

    Returns:
        The queries in a fixed order, each with one item_id.
    """
    queries = read_packaged()
    films = list(dict.fromkeys((query.title, query.year) for query in queries))
    found = match_titles(films, [TitledItem(*item) for item in items])
    item_of = {films[position]: item_id for position, item_id in found.items()}
    matched = [
        RawQuery(
            query.query_id,
            query.text,
            (item_of[query.title, query.year],),
            query.group,
            query.split,
            PACKAGED,
        )
        for query in queries
        if (query.title, query.year) in item_of
    ]
    say(
        f"packaged queries: {len(found):,} of {len(films):,} films are in this catalogue, "
        f"{len(matched):,} queries"
    )
    return matched


def read_packaged() -> list[FilmQuery]:
    """Return all packaged queries, not matched to a catalogue."""
    resource = files("sidrec.corpus").joinpath("resources", f"{PACKAGED}.jsonl.xz")
    lines = lzma.decompress(resource.read_bytes()).decode().splitlines()
    return [FilmQuery(**json.loads(line)) for line in lines]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in json_objects(path):
        yield f"{path}, line {number}", row


def _query(row: dict[str, Any], place: str, source: str) -> RawQuery:
    unknown = sorted(set(row) - _KNOWN_KEYS)
    if "user_id" in unknown:
        raise DataError(
            f"{place}: has a 'user_id': this is a log, not a list of queries; read it with sidrec "
            "prepare clicks, or take the key out."
        )
    if unknown:
        raise DataError(
            f"{place}: key {unknown[0]!r} is not known; known are {', '.join(sorted(_KNOWN_KEYS))}."
        )
    query_id = _id(_value(row, ("query_id",), place), place)
    text = _value(row, _TEXT_KEYS, place)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the query is empty or not text; remove the line or fill it.")
    split = row.get("split") or ""
    if split not in (*SPLITS, ""):
        raise DataError(f"{place}: split is {split!r}, expected one of {', '.join(SPLITS)}.")
    group = row.get("group")
    item_ids = _item_ids(_value(row, _ITEM_KEYS, place), place)
    return RawQuery(
        query_id,
        " ".join(text.split()),
        item_ids,
        query_id if group is None else _id(group, place),
        cast(Literal["train", "valid", "test", ""], split),
        source,
        place,
        grades=grades_of(row.get("grades"), len(item_ids), place),
    )


def _value(row: dict[str, Any], keys: tuple[str, ...], place: str) -> Any:  # noqa: ANN401
    present = [key for key in keys if key in row]
    if len(present) != 1:
        raise DataError(f"{place}: needs {' or '.join(keys)}, found {', '.join(row) or 'no key'}.")
    return row[present[0]]


def _item_ids(value: Any, place: str) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{place}: the items are {value!r}, expected a list of at least one id; a query "
            "without an answer cannot be used."
        )
    return tuple(dict.fromkeys(_id(item, place) for item in value))


def _id(value: Any, place: str) -> str:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(f"{place}: {value!r} is not an id; ids are text or whole numbers.")
    return str(value).strip()
