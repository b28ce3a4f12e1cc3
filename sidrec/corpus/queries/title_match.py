"""Title matching: finds a film of one catalogue in another by title and year."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from sidrec.corpus.reading.item_text import reading_order, title_and_year

_PARENTHESES = re.compile(r"\(([^()]*)\)")
_ALIAS = re.compile(r"^(a\.?k\.?a\.?|also known as)\s+", re.IGNORECASE)
_APOSTROPHES = re.compile("['\u2019`\u00b4]")
_NO_WORD = re.compile(r"[\W_]+")
_ARTICLE = re.compile(r"^(the|a|an) (?=.)")
_FUNCTION_WORD = re.compile(
    r"a|about|after|all|an|and|at|by|for|from|go|he|her|him|his|i|if|in|is|it|its|me|my|no|of|off|"
    r"on|or|our|out|she|so|that|the|them|they|to|up|us|we|what|who|with|you|your"
)
_SEGMENTS = re.compile(r":\s+|\s+-\s+")

Key = TypeVar("Key")
Value = TypeVar("Value")


class TitledItem(NamedTuple):
    """Item with its id, title and year for title matching.

    Attributes:
        item_id: The catalogue's own id.
        title: Title as the catalogue writes it; a year in parentheses at its end is recognized.
        year: Year of release, ``None`` where unknown; then the title's own year counts.
    """

    item_id: str
    title: str
    year: int | None


def normalize(text: str) -> str:
    """Remove case, accents and punctuation, so that two spellings compare equal.

    Examples:
        >>> normalize("Amélie & the Fabulous  Destiny!")
        'amelie and the fabulous destiny'
    """
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    plain = _APOSTROPHES.sub("", plain).replace("&", " and ").replace("+", " and ")
    return _NO_WORD.sub(" ", plain).strip()


@lru_cache(maxsize=1 << 18)
def title_keys(title: str) -> tuple[str, ...]:
    """Return the normalized names of a title, the main one first, without leading articles.

    Examples:
        >>> title_keys("Seven (a.k.a. Se7en) (1995)")
        ('seven', 'se7en')
        >>> title_keys("Matrix, The (1999)") == title_keys("The Matrix")
        True
    """
    name, _ = title_and_year(title)
    spellings = [_PARENTHESES.sub("", name), *_PARENTHESES.findall(name)]
    keys = [_key(spelling) for spelling in spellings]
    return tuple(dict.fromkeys(key for key in keys if key)) or (name.casefold().strip(),)


def match_titles(wanted: Sequence[tuple[str, int]], items: Iterable[TitledItem]) -> dict[int, str]:
    """Match every wanted film to an item; of several that fit, the first in the catalogue.

    Three passes, each over what the earlier ones left: a common name and the same year; a common
    name that is unique on both sides and a year that differs by one; the part of a title before
    or after a colon or dash that is the other side's whole title, of the same year and unique
    (``Star Wars: Episode IV - A New Hope`` is ``Star Wars``).

    Args:
        wanted: Title and year of each film.
        items: The catalogue; items without any year are never matched.

    Returns:
        item_id by position in ``wanted``; films that the catalogue lacks are left out. No item
        matches two films.
    """
    known = [
        item if item.year else item._replace(year=title_and_year(item.title)[1]) for item in items
    ]
    known = [item for item in known if item.year]
    found: dict[int, str] = {}
    for find in (_same_year, _year_beside, _segment):
        taken = set(found.values())
        left = [item for item in known if item.item_id not in taken]
        for position, item_id in find(wanted, left).items():
            if position not in found and item_id not in taken:
                found[position] = item_id
                taken.add(item_id)
    return dict(sorted(found.items()))


def _same_year(wanted: Sequence[tuple[str, int]], items: list[TitledItem]) -> dict[int, str]:
    by_key: dict[tuple[str, int | None], str] = {}
    for rank in (0, 1):  # a main title takes precedence over another film's alternative title
        for item in items:
            for key in title_keys(item.title)[rank : 1 if rank == 0 else None]:
                by_key.setdefault((key, item.year), item.item_id)
    return {
        position: item_id
        for position, (title, year) in enumerate(wanted)
        for key in reversed(title_keys(title))
        if (item_id := by_key.get((key, year)))
    }


def _year_beside(wanted: Sequence[tuple[str, int]], items: list[TitledItem]) -> dict[int, str]:
    by_key = _gather((key, item) for item in items for key in title_keys(item.title))
    rivals = _gather(
        (key, position) for position, (title, _) in enumerate(wanted) for key in title_keys(title)
    )
    return {
        position: by_key[key][0].item_id
        for position, (title, year) in enumerate(wanted)
        for key in reversed(title_keys(title))
        if len(by_key.get(key, ())) == 1
        and len(rivals[key]) == 1
        and abs((by_key[key][0].year or 0) - year) == 1
    }


def _segment(wanted: Sequence[tuple[str, int]], items: list[TitledItem]) -> dict[int, str]:
    whole = _gather(((title_keys(item.title)[0], item.year), item.item_id) for item in items)
    parts = _gather(
        ((part, item.year), item.item_id) for item in items for part in _parts(item.title)
    )
    found: dict[int, str] = {}
    for position, (title, year) in enumerate(wanted):
        candidates = parts.get((title_keys(title)[0], year), [])
        for part in _parts(title):
            candidates = candidates + whole.get((part, year), [])
        if len(set(candidates)) == 1:
            found[position] = candidates[0]
    return found


def _parts(title: str) -> list[str]:
    name = _PARENTHESES.sub("", title_and_year(title)[0])
    pieces = [_key(piece) for piece in _SEGMENTS.split(name)]
    # One word is not enough: "Alien: Resurrection" is not "Resurrection".
    return [piece for piece in {pieces[0], pieces[-1]} if len(pieces) > 1 and " " in piece]


def _key(spelling: str) -> str:
    spelling = reading_order(_ALIAS.sub("", spelling.strip()).strip())
    return _ARTICLE.sub("", normalize(spelling))


def _gather(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    gathered: dict[Key, list[Value]] = defaultdict(list)
    for key, value in pairs:
        gathered[key].append(value)
    return gathered


def names_title(text: str, title: str) -> bool:
    """Return whether a text contains a title: whole words, any of its names, any spelling.

    A part of a title before or after a colon or dash counts when it has two words or more. A title
    that is one function word (``It``, ``Up``) is never found, because almost every text contains
    it.

    Examples:
        >>> names_title("something like the matrix but older", "Matrix, The (1999)")
        True
        >>> names_title("a preheated oven", "Heat (1995)")
        False
    """
    words = f" {normalize(text)} "
    keys = {
        key for key in (*title_keys(title), *_parts(title)) if not _FUNCTION_WORD.fullmatch(key)
    }
    return any(f" {key} " in words for key in keys if key)
