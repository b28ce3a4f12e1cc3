"""The text that stands for an item: what the encoder reads."""

import re
from collections.abc import Sequence

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
