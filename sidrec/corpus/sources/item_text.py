"""The text that stands for an item: what the encoder reads."""

import ast
import re
from collections.abc import Sequence
from html.parser import HTMLParser

_STYLE_RULE = re.compile(
    r"[.#@]?[A-Za-z][\w.#:-]*+(?:\s*,\s*[.#@]?[A-Za-z][\w.#:-]*+)*+\s*\{[^{}]*:[^{}]*\}"
)
_BETWEEN_STRINGS = re.compile(r"""['"], ['"]""")
_UNREAD = ("style", "script")
_LITTER = re.compile(r"[<&{]")  # a text without any of these has no tag, entity or rule
_LISTS = ("['", '["')


def clean_text(text: str) -> str:
    """Return what a reader would see of a text, in one line.

    Examples:
        >>> clean_text("['<b>Strong</b> glue&hellip;', '.caption {color: red;}Dries fast']")
        'Strong glue… Dries fast'
        >>> clean_text("holds < 5 kg & > 1 kg")
        'holds < 5 kg & > 1 kg'
    """
    if not _LITTER.search(text) and not text.lstrip().startswith(_LISTS):
        return " ".join(text.split())
    visible = _VisibleText()
    visible.feed(_without_list(text.strip()))
    visible.close()
    return " ".join(_STYLE_RULE.sub(" ", "".join(visible.parts)).split())


def _without_list(text: str) -> str:
    """Join the strings of a written-out list, as dumps of Amazon's data hold them."""
    if not (text.startswith(_LISTS) and text.endswith(("']", '"]'))):
        return text
    try:
        parts = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # quotes within quotes
        parts = _BETWEEN_STRINGS.split(text[2:-2].replace("\\n", " "))
    return " ".join(map(str, parts))


class _VisibleText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unread = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._unread = tag if tag in _UNREAD else self._unread
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._unread = "" if tag == self._unread else self._unread
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.parts.append(data)


_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-\u2013]\s*\d{0,4})?\)\s*$")
_ALTERNATIVE = re.compile(r"\s*\(([^()]*)\)")
_MOVED_ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|A|An|Le|La|Les|L'|Un|Une|El|Los|Las|Una|Il|Lo|I|Gli|"
    r"Der|Die|Das|Ein|Eine|De|Det|Den|Het|En|Et|O|Os|As)$",
    re.IGNORECASE,
)


def title_and_year(raw: str) -> tuple[str, int | None]:
    """Take a MovieLens title apart.

    Args:
        raw: Title as MovieLens writes it: moved article, other titles and year in parentheses.

    Returns:
        The title in reading order without its year, and the year, ``None`` where there is none.

    Examples:
        >>> title_and_year("Matrix, The (1999)")
        ('The Matrix', 1999)
        >>> title_and_year("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
        ('The City of Lost Children (La Cité des enfants perdus)', 1995)
    """
    found = _YEAR.search(raw)
    year = int(found.group(1)) if found else None
    name = raw[: found.start()] if found else raw
    others = [reading_order(other.strip()) for other in _ALTERNATIVE.findall(name)]
    main = reading_order(_ALTERNATIVE.sub("", name).strip())
    if not main:  # a title that is nothing but parentheses
        return name.strip(), year
    return " ".join([main, *(f"({other})" for other in others if other)]), year


def reading_order(title: str) -> str:
    """Put an article that was moved behind the title back to its front.

    Examples:
        >>> reading_order("Usual Suspects, The")
        'The Usual Suspects'
        >>> reading_order("Avventura, L'")
        "L'Avventura"
    """
    moved = _MOVED_ARTICLE.match(title)
    if moved is None:
        return title
    space = "" if moved["article"].endswith("'") else " "
    return f"{moved['article']}{space}{moved['rest']}"


def item_text(
    title: str,
    year: int | None,
    *,
    genres: Sequence[str],
    tags: Sequence[str],
    genome_tags: Sequence[str],
    description: str,
) -> str:
    """Write one item as text: the short facts first, because encoders cut long texts off.

    Examples:
        >>> item_text("Heat", 1995, genres=["Action"], tags=[], genome_tags=["heist"],
        ...     description="Two men.")
        'Heat (1995). Genres: Action. Themes: heist. Two men.'
    """
    parts = [f"{title} ({year})" if year else title]
    for name, words in (("Genres", genres), ("Tags", tags), ("Themes", genome_tags)):
        if words:
            parts.append(f"{name}: {', '.join(words)}")
    if description:
        parts.append(" ".join(description.split()))
    text = ". ".join(part.rstrip(". ") for part in parts)
    return text + "." if text else ""
