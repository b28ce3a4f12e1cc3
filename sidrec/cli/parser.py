"""Parser of the commands; its errors are one line that names the nearest valid key."""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

import sidrec
from sidrec.errors import MAX_CHARACTERS, ConfigError, nearest, one_line
from sidrec.plugins import broken_import

_UNKNOWN_KEY = re.compile(
    r"(?:[Oo]ption|[Kk]ey) ['\"]([\w.]+)['\"] is not accepted"
    r"|does not accept option ['\"]([\w.]+)['\"]"
    r"|unrecognized arguments: -*([\w.]+)"
    r"|No action for key ['\"]([\w.]+)['\"]"
)
_GROUP = re.compile(r"Group ['\"]([\w.]+)['\"] does not accept")
_UNKNOWN_CLASS = re.compile(
    r"module 'sidrec[\w.]*' has no attribute '(\w+)'"
    r"|Importing 'sidrec\.(?:\w+\.)*(\w+)' is not allowed"
    r"|Expected a dot import path string: (\w+)|Multiple subclasses with name (\w+)"
)
_NOISE = (
    (re.compile(r"\s*Does not validate against any of the Union subtypes.*?Errors:\s*-", re.S), ""),
    (re.compile(r"- Expected a <class 'NoneType'>"), ""),
    (
        re.compile(r"\d+ validation error for \S+|\[type=\w+, input.*?(?:pydantic.dev\S*|$)", re.S),
        "",
    ),
    (re.compile(r"Given value type: .*", re.S), ""),
    (
        re.compile(r"(?:Expected a dot import path string:|Multiple subclasses with name) (\w+).*"),
        r"'\1' is not the path of a class",
    ),
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    (
        re.compile(r"Add the import path to import_path_allowlist in set_parsing_settings"),
        "Add its package to the environment variable SIDREC_ALLOW_IMPORTS",
    ),
    (re.compile(r" Subclass types expect one of:.*", re.S), " Give class_path and init_args"),
    (re.compile(r"\s+"), " "),
)
_MAX_CHARACTERS = MAX_CHARACTERS - 40  # room for the name of the command before it


class CommandParser(ArgumentParser):
    """Parser of a command that is not Lightning's, with ``--config`` where it has options.

    Args:
        parts: Base classes that options take; the arguments of their subclasses are valid keys.
        source: Help of ``--from``; None: the command has none.
        source_required: Whether ``--from`` must be given.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        parts: Sequence[type] = (),
        source: str | None = None,
        source_required: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))
        self.parts = parts
        if source is not None:
            self.add_argument(
                "--config", action="config", help="YAML file, or packaged name: `sidrec configs`."
            )
            kind = str if source_required else str | None
            self.add_argument("--from", type=kind, required=source_required, help=source)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Parse the words of a command.

        Raises:
            ConfigError: If a module that they name cannot be imported.
        """
        try:
            return super().parse_args(*args, **kwargs)
        except Exception as error:
            raise broken_import(error) or error from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with code 2.

        Raises:
            ConfigError: If a module that the command names cannot be imported.
        """
        if broken := broken_import(ex):
            raise broken
        valid = options_of(self)
        for part in self.parts:
            subclasses: list[type] = part.__subclasses__()
            for one in subclasses:
                valid += inspect.signature(one).parameters
        program = self.prog.replace(" [options]", "")
        sys.stderr.write(f"{program}: {with_suggestion(message, valid)}\n")
        sys.exit(ConfigError.exit_code)


def with_suggestion(message: str, valid: Iterable[str]) -> str:
    """Return a parser's message as one line, with the nearest valid name where one is unknown.

    Args:
        message: Message of argparse or jsonargparse, over any number of lines.
        valid: Names of the parser's options, dots between nested ones, with or without ``--``.
    """
    near = _nearest_class(message) or _nearest_key(message, valid)
    line = message
    for pattern, replacement in _NOISE:
        line = pattern.sub(replacement, line)
    hint = f"; did you mean '{near}'?" if near else "."
    return one_line(line.strip().rstrip(".;"), max_characters=_MAX_CHARACTERS - len(hint)) + hint


def options_of(parser: Any) -> list[str]:  # noqa: ANN401 (argparse hides what we read)
    """Return the names of a parser's options, and of those of its subcommands."""
    names: list[str] = []
    for action in parser._actions:
        names += [action.dest, *(text.lstrip("-") for text in action.option_strings)]
        if isinstance(action.choices, dict):
            for subcommand in action.choices.values():
                names += options_of(subcommand)
    return [name for name in dict.fromkeys(names) if not name.endswith("+")]


def _nearest_key(message: str, valid: Iterable[str]) -> str | None:
    unknown = _UNKNOWN_KEY.search(message)
    if unknown is None:
        return None
    name = next(filter(None, unknown.groups()))
    group = _GROUP.search(message)
    return nearest(f"{group.group(1)}.{name}" if group else name, list(valid))


def _nearest_class(message: str) -> str | None:
    unknown = _UNKNOWN_CLASS.search(message)
    if unknown is None:
        return None
    name = next(filter(None, unknown.groups()))
    found = name if name in sidrec.__all__ else nearest(name, sidrec.__all__)
    return f"sidrec.{found}" if found else None
