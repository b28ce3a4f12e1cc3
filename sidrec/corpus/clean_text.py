"""Take the litter of web shops out of a text: tags, style rules, entities, list brackets."""

import ast
import re
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
