"""Item texts, as the encoder reads them."""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

_NAMES = (
    "a|abbr|address|area|article|aside|audio|b|base|bdi|bdo|big|blockquote|body|br|button|canvas|"
    "caption|center|cite|code|col|colgroup|dd|del|details|dfn|dialog|div|dl|dt|em|embed|"
    "fieldset|figcaption|figure|font|footer|form|frame|frameset|h[1-6]|head|header|hr|html|i|"
    "iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|meta|meter|nav|noscript|object|"
    "ol|optgroup|option|output|p|param|picture|pre|progress|q|rp|rt|ruby|s|samp|script|section|"
    "select|small|source|span|strike|strong|style|sub|summary|sup|svg|table|tbody|td|template|"
    "textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
_FLAGS = (
    "allowfullscreen|async|autoplay|checked|compact|controls|defer|disabled|hidden|ismap|loop|"
    "multiple|muted|noshade|nowrap|open|readonly|required|reversed|selected"
)
# No part of a tag holds "<", so the search reads every character a bounded number of times.
_VALUE = r"""(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=]++)"""
_ATTRIBUTE = rf"\s++(?:[A-Za-z_:@][-\w:.@]*+\s*+=\s*+{_VALUE}|(?:{_FLAGS})\b)"
_MARKUP = re.compile(
    rf"<(?=[a-z/!])(?:(/?)([a-z][a-z0-9-]*+)(?:{_ATTRIBUTE})*+\s*+/?>|()(!--|!doctype(?=\b[^<>]*>))[^<>]*+>?)",
    re.IGNORECASE,
)
_IS_TAG = frozenset(re.findall(r"\w+", _NAMES.replace("h[1-6]", "h1|h2|h3|h4|h5|h6")))
_EMBEDDED = {  # elements that hold code, and a pattern that separates code from words
    "style": re.compile(r"\{[^{}:]*+:[^{}]*+\}|@import"),
    "script": re.compile(r"[;{}=]|\w\("),
}
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_BLOCK = re.compile(r"\{([^{}]*+)\}")
_DECLARATION = re.compile(
    r"\s*(?:-\w+-)?(?:max-|min-)?(?:background|border|bottom|box|clear|color|content|cursor|"
    r"display|float|font|height|left|letter|line|list|margin|opacity|outline|overflow|padding|"
    r"position|right|table|text|top|vertical|visibility|white|width|word|z)(?:-[a-z]+)*\s*:"
)
_CLASS = rf"(?:(?<!\w)(?:{_NAMES}))?[.#][A-Za-z_][\w.#:-]*"
_GROUP = rf"{_CLASS}(?:[\s>]+(?:{_CLASS}|(?:{_NAMES})(?::[\w-]+)?))*"
_SELECTOR = re.compile(rf"{_GROUP}(?:\s*,\s*{_GROUP})*\s*$")
_SELECTOR_CHARACTERS = 200  # read before a brace

_STRING = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_STRINGS = re.compile(_STRING, re.DOTALL)
_LIST = re.compile(rf"\[[\[\s]*+{_STRING}(?:[\[\],\s]++{_STRING})*+[\],\s]*+", re.DOTALL)
_BETWEEN_STRINGS = re.compile(r"""['"], ['"]""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def clean_text(text: str) -> str:
    """Remove markup from a text and join it into one line; every other word stays.

    Markup is a tag of HTML with attributes as HTML writes them, a closed comment, an entity with
    its semicolon, what a closed ``style`` or ``script`` element holds where that is code, a rule
    of a style sheet for a class or an id, and the brackets and quotation marks of a written-out
    list of strings. Takes time linear in the length of the text.

    Examples:
        >>> clean_text("['<b>Strong</b> glue&hellip;', '.caption {color: red;}Dries fast']")
        'Strong glue… Dries fast'
        >>> clean_text("holds < 5 kg & > 1 kg, see shop.com/?a=1&copy=2")
        'holds < 5 kg & > 1 kg, see shop.com/?a=1&copy=2'
        >>> clean_text("Learn the <script> tag: a web primer")
        'Learn the <script> tag: a web primer'
    """
    text = _without_list(text.strip())
    if "<" in text:
        text = " ".join(_visible_parts(text))
    if "{" in text:
        text = _without_style_rules(text)
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    return " ".join(text.split())


def _visible_parts(text: str) -> Iterator[str]:
    starts: list[int] = []
    ends: list[int] = []
    names: list[str] = []  # "p", "/p", "!--" or "!doctype" of each mark
    for mark in _MARKUP.finditer(text):
        starts.append(mark.start())
        ends.append(mark.end())
        names.append("".join(mark.groups("")).lower())
    elements = _elements(set(names))
    end_of_code = _embedded_code(text, starts, ends, names)
    last_comment_end = text.rfind("-->")
    position = 0
    for start, end, name in zip(starts, ends, names, strict=True):
        if start < position:  # inside a comment or embedded code
            continue
        if name not in elements:
            if name == "!--" and start <= last_comment_end:
                end = text.find("-->", start) + 3
            elif start in end_of_code:
                end = end_of_code[start]
            else:  # a text about this tag, or a name unknown to HTML
                continue
        yield text[position:start]
        position = end
    yield text[position:]


def _elements(names: set[str]) -> set[str]:
    """Return the names of tags that are markup; a name unknown to HTML counts if it is closed."""
    closed = {name for name in names if f"/{name}" in names}
    known = {name for name in names if name.removeprefix("/") in _IS_TAG | closed}
    return known - {"style", "/style", "script", "/script"} | {"!doctype"}


def _embedded_code(
    text: str, starts: list[int], ends: list[int], names: list[str]
) -> dict[int, int]:
    """Return start -> end of the parts to remove of closed style and script elements."""
    end_of_code = {}
    for name, code in _EMBEDDED.items():
        places = [place for place, other in enumerate(names) if other in (name, f"/{name}")]
        for first, second in pairwise(places):
            if names[first] != name or names[second] == name:
                continue
            if code.search(text, ends[first], starts[second]):
                end_of_code[starts[first]] = ends[second]
            else:  # words between two tags
                end_of_code |= {starts[first]: ends[first], starts[second]: ends[second]}
    return end_of_code


def _without_style_rules(text: str) -> str:
    parts, position, last_end = [], 0, 0
    for block in _BLOCK.finditer(text):
        first = max(last_end, block.start() - _SELECTOR_CHARACTERS)
        last_end = block.end()
        declarations = [part for part in block[1].split(";") if part.strip()]
        if not declarations or not all(map(_DECLARATION.match, declarations)):
            continue
        selector = _SELECTOR.search(text[first : block.start()])
        if selector:
            parts.append(text[position : first + selector.start()])
            position = last_end
    return " ".join([*parts, text[position:]])


def _without_list(text: str) -> str:
    """Join the strings of a written-out list, nested or not, as in dumps of Amazon's data."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    if _LIST.fullmatch(text):
        parts = [
            _ESCAPED.sub(lambda sign: _ESCAPES.get(sign[1], sign[1]), part[1:-1])
            for part in _STRINGS.findall(text)
        ]
        return (", " if text.startswith("[[") else " ").join(parts)
    if text.startswith(("['", '["')) and text.endswith(("']", '"]')):  # quotes within quotes
        return " ".join(_BETWEEN_STRINGS.split(text[2:-2].replace("\\n", " ")))
    return text


_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-\u2013]\s*\d{0,4})?\)\s*$")
_ALTERNATIVE = re.compile(r"\s*\(([^()]*)\)")
_MOVED_ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|A|An|Le|La|Les|L'|Un|Une|El|Los|Las|Una|Il|Lo|I|Gli|"
    r"Der|Die|Das|Ein|Eine|De|Det|Den|Het|En|Et|O|Os|As)$",
    re.IGNORECASE,
)


def title_and_year(raw: str) -> tuple[str, int | None]:
    """Split a MovieLens title into title and year.

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
    if not main:  # a title of parentheses alone
        return name.strip(), year
    return " ".join([main, *(f"({other})" for other in others if other)]), year


def reading_order(title: str) -> str:
    """Move an article from the end of a title back to its front.

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
    """Compose the text of one item, short facts first, because encoders truncate long texts.

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
