"""Errors that a user can act on; each message says what was expected and found, and what to do."""

from collections.abc import Sequence
from difflib import get_close_matches


def nearest(name: str, valid: Sequence[str]) -> str | None:
    """Return the valid name most similar to ``name``; None if none is similar.

    For a dotted name it compares the first part if that is unknown, else the last part.

    >>> nearest("trainer.max_step", ["trainer.max_steps", "data"])
    'trainer.max_steps'
    >>> nearest("model.init_args.temprature", ["temperature", "model"])
    'temperature'
    >>> nearest("modell.init_args.temperature", ["data.help", "model.help"])
    'model'
    """
    head, leaf = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
    heads = list(dict.fromkeys(text.split(".", 1)[0] for text in valid))
    found = get_close_matches(name, valid, n=1, cutoff=0.8)
    if not found and head not in heads:
        found = get_close_matches(head, heads, n=1)
    if not found and head != leaf:
        found = get_close_matches(leaf, [text for text in valid if text != leaf], n=1)
    return found[0] if found and found[0] != name else None


class SidrecError(Exception):
    """Base class of errors that the command line reports; ends the process with code 1."""

    exit_code = 1
    max_characters = 300  # shown to the user; --debug shows all


class ConfigError(SidrecError):
    """Contradiction of two settings, or a setting out of range. Exit code 2."""

    exit_code = 2


class ContradictionError(ConfigError):
    """Contradiction with stored settings; the message has a table that may be long."""

    max_characters = 4_000


class DataError(SidrecError):
    """Violation of the contract of a file or table. Exit code 3."""

    exit_code = 3


class RunError(SidrecError):
    """Unusable run directory: unfinished, of another stage, or of another corpus."""


MAX_CHARACTERS = SidrecError.max_characters
_MAX_WORD_CHARACTERS = 160  # longer words are values from a file, or paths
_CUT = " … "


def one_line(text: str, *, max_characters: int = MAX_CHARACTERS) -> str:
    r"""Return a message as one line of readable length, without its middle part.

    Examples:
        >>> one_line("first line\nsecond\tline")
        'first line second line'
        >>> len(one_line("word " * 400)), len(one_line("x" * 4_000))
        (300, 160)
    """
    words = (_shortened(word, _MAX_WORD_CHARACTERS) for word in text.split())
    printable = "".join(sign if sign.isprintable() else "?" for sign in " ".join(words))
    return _shortened(printable, max_characters)


def _shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    head = (length - len(_CUT)) * 2 // 3
    return text[:head] + _CUT + text[head + len(_CUT) - length :]
