"""Request parser: what one line of requests asks for, or what is wrong with it."""

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from sidrec.errors import DataError
from sidrec.generator.decoding.item_filters import Restriction
from sidrec.types import TASKS, Request

MAX_LINE_BYTES = 8 << 20  # a history of 500,000 items fits
MAX_QUERY_CHARACTERS = 4_096  # far more than the tokens that are read; bounds tokenizing time
_SHOWN_CHARACTERS = 40
_KEYS = ("id", "task", "query", "history", "allowed", "excluded")
_SIMILARITY = 0.8  # of difflib, from which on an unknown key counts as a misspelling


class BadRequestError(ValueError):
    """Error in one line; its message becomes the line's answer."""


@runtime_checkable
class KnowsItems(Protocol):
    """Catalogue that looks up item_ids, such as a ``Retriever``."""

    def known(self, item_ids: list[str]) -> tuple[tuple[int, ...], int]:
        """Return the item_index of known items, in order, and the number of unknown ones."""
        ...


class Understood(NamedTuple):
    """Parsed line of requests.

    Attributes:
        request_id: Id of the line, if it has one that JSON can repeat.
        error: Error message; empty if the request can be answered.
        request: Request; None if it cannot be answered.
        restriction: Restriction of the items that it may get.
        num_unknown: Number of item_ids in all of its lists that the catalogue does not have.
        is_cut: Whether the query has more characters than are read.
    """

    request_id: str | int | float | None
    error: str
    request: Request | None
    restriction: Restriction
    num_unknown: int
    is_cut: bool


def understand(line: bytes, catalogue: KnowsItems) -> Understood:
    """Parse a line: ``{"id": …, "task": "search", "query": …}`` or ``"history": […]``.

    Both may carry ``"allowed": [item_id, …]`` (the only items to return) and ``"excluded"``. It
    never raises, whatever the line holds.
    """
    given: Any = None
    try:
        given = _parsed(line)
        return _understood(given, catalogue)
    except BadRequestError as error:
        own = given.get("id") if isinstance(given, dict) else None
        return Understood(_repeatable(own), str(error), None, Restriction(), 0, is_cut=False)


def texts_in(given: object, name: str) -> list[str]:
    """Return the texts of an argument that takes a list of them; any iterable serves.

    Raises:
        DataError: If it is one text or no iterable, or an element is not text.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(
            f"{name} must be a list of strings, got {_shown(given)}; put one string into a list."
        )
    texts = list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{name} must be a list of strings, element {place} is {_shown(text)} "
                f"({type(text).__name__}); give the string."
            )
    return texts


def beginning_of(query: str) -> str:
    """Return the part of a query that is read: all of it, or its first characters if very long."""
    if len(query) <= MAX_QUERY_CHARACTERS:
        return query
    return query.lstrip()[:MAX_QUERY_CHARACTERS]


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise BadRequestError(f"line is longer than {MAX_LINE_BYTES >> 20} MiB; shorten it")
    try:
        given = json.loads(line, parse_constant=_no_number)
    except RecursionError:
        raise BadRequestError("not valid JSON: nested too deeply") from None
    except ValueError as error:  # broken JSON or broken UTF-8
        raise BadRequestError(f"not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadRequestError(f"expected a JSON object, got {type(given).__name__}")
    return given


def _no_number(name: str) -> NoReturn:
    raise BadRequestError(f"not valid JSON: {name} is not a number")


def _understood(given: dict[str, Any], catalogue: KnowsItems) -> Understood:
    own, task = given.get("id"), given.get("task")
    if not isinstance(own, str):
        raise BadRequestError(f"id must be a string{_hint(own)}")
    if task not in TASKS:
        raise BadRequestError(f"task must be one of {', '.join(TASKS)}, got {_shown(task)}")
    _refuse_misspelled_keys(given)
    restriction, num_unknown = _restriction(given, catalogue)
    if task == "search":
        query = _query(given)
        request = Request(own, "search", beginning_of(query), (), ())
        cut = len(query) > MAX_QUERY_CHARACTERS
        return Understood(own, "", request, restriction, num_unknown, is_cut=cut)
    items, unknown = catalogue.known(_history(given))
    if not items:
        raise BadRequestError(
            f"history holds no item of the catalogue ({unknown} unknown); give one it knows"
        )
    request = Request(own, "recommendation", "", items, ())
    return Understood(own, "", request, restriction, num_unknown + unknown, is_cut=False)


def _refuse_misspelled_keys(given: dict[str, Any]) -> None:
    """Refuse a key that resembles a missing one; other unknown keys are the user's own."""
    missing = [key for key in _KEYS if key not in given]
    for key in given.keys() - set(_KEYS):
        for meant in difflib.get_close_matches(key.lower()[:20], missing, 1, _SIMILARITY):
            raise BadRequestError(f'unknown key {_shown(key)}; did you mean "{meant}"?')


def _query(given: dict[str, Any]) -> str:
    query = given.get("query")
    if not isinstance(query, str):
        raise BadRequestError('search needs "query", a string')
    if not query.strip():
        raise BadRequestError("query is empty; give at least one word")
    return query.encode(errors="replace").decode()  # JSON may hold a lone surrogate


def _history(given: dict[str, Any]) -> list[str]:
    if "history" not in given:
        raise BadRequestError('recommendation needs "history", a list of item_id strings')
    history = _item_ids(given, "history")
    if not history:
        raise BadRequestError("history is empty; give at least one item_id")
    return history


def _restriction(given: dict[str, Any], catalogue: KnowsItems) -> tuple[Restriction, int]:
    """Return the restriction of the request, and the number of unknown item_ids.

    Unknown items are skipped: among the allowed ones they cannot be returned, among the excluded
    ones they never are.
    """
    excluded: tuple[int, ...] = ()
    num_unknown = 0
    if given.get("excluded") is not None:
        excluded, num_unknown = catalogue.known(_item_ids(given, "excluded"))
    if given.get("allowed") is None:
        return Restriction(None, excluded), num_unknown
    allowed, unknown = catalogue.known(_item_ids(given, "allowed"))
    if not allowed:
        raise BadRequestError(
            f"allowed holds no item of the catalogue ({unknown} unknown); give one it knows, or "
            "leave it out"
        )
    return Restriction(allowed, excluded), num_unknown + unknown


def _item_ids(given: dict[str, Any], key: str) -> list[str]:
    item_ids = given[key]
    if not isinstance(item_ids, list):
        raise BadRequestError(f"{key} must be a list of item_id strings, got {_shown(item_ids)}")
    for place, item in enumerate(item_ids):
        if not isinstance(item, str):
            what = f"{key} must be a list of item_id strings, element {place} is no string"
            raise BadRequestError(what + _hint(item))
    return item_ids


def _hint(value: object) -> str:
    """Return how to write a number as a string, or what was found."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f': write "{_shown(value)}", not {_shown(value)}'
    return f", got {_shown(value)}"


def _shown(value: object) -> str:
    """Return a value as JSON where it is short, its type otherwise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = json.dumps(value)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return type(value).__name__


def _repeatable(own: object) -> str | int | float | None:
    """Return an id as the answer can repeat it: 1e999, say, has no JSON form."""
    if isinstance(own, float) and not math.isfinite(own):
        return None
    return own if isinstance(own, (str, int, float)) else None
