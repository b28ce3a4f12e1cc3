"""What is wrong with arguments and their files, as one line with file, line or nearest key."""

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from sidrec.errors import MAX_CHARACTERS, ConfigError, nearest, one_line

_UNKNOWN_KEY = re.compile(
    r"(?:[Oo]ption|[Kk]ey) ['\"]([\w.]+)['\"] is not accepted"
    r"|does not accept option ['\"]([\w.]+)['\"]"
    r"|unrecognized arguments: -*([\w.]+)"
    r"|No action for key ['\"]([\w.]+)['\"]"
)
_GROUP = re.compile(r"Group ['\"]([\w.]+)['\"] does not accept")
_UNKNOWN_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NOISE = (
    (re.compile(r"\s*Does not validate against any of the Union subtypes.*?Errors:\s*-", re.S), ""),
    (re.compile(r"- Expected a <class 'NoneType'>"), ""),
    (
        re.compile(r"\d+ validation error for \S+|\[type=\w+, input.*?(?:pydantic.dev\S*|$)", re.S),
        "",
    ),
    (re.compile(r"Given value type: .*", re.S), ""),
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    (
        re.compile(r"Add the import path to import_path_allowlist in set_parsing_settings"),
        "Add its package to the environment variable SIDREC_ALLOW_IMPORTS",
    ),
    (re.compile(r" Subclass types expect one of:.*", re.S), " Give class_path and init_args"),
    (re.compile(r"\s+"), " "),
)
_MAX_CHARACTERS = MAX_CHARACTERS - 40  # room for the name of the command before it
_MAX_NODES = 100_000  # of a configuration; ours have a few hundred


def with_suggestion(message: str, valid: Iterable[str]) -> str:
    """Return a parser's message as one line, with the nearest valid name where one is unknown.

    Args:
        message: Of argparse or jsonargparse, over any number of lines.
        valid: Names of the parser's options, dots between nested ones, with or without ``--``.
    """
    near = _nearest_class(message) or _nearest_key(message, valid)
    line = message
    for pattern, replacement in _NOISE:
        line = pattern.sub(replacement, line)
    hint = f"; did you mean '{near}'?" if near else "."
    return one_line(line.strip().rstrip(".;"), max_characters=_MAX_CHARACTERS - len(hint)) + hint


def refuse_broken_configs(arguments: Sequence[str]) -> None:
    """Check that every ``--config FILE`` of a command line can be read; parsers forget the name.

    A file that is missing is left to the parser.

    Raises:
        ConfigError: If a file is no YAML mapping, contains itself, or unfolds to more than
            100,000 values; names file and line.
    """
    files = [argument.split("=", 1)[1] for argument in arguments if argument[:9] == "--config="]
    files += [value for flag, value in pairwise(arguments) if flag == "--config"]
    for file in filter(Path.is_file, map(Path, files)):
        import yaml

        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except Exception as error:  # a wrong !!bool is a KeyError, a wrong date a ValueError, …
            mark = getattr(error, "problem_mark", None)
            place = f"{file}, line {mark.line + 1}" if mark else f"{file}"
            reason = getattr(error, "problem", None) or (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{place}: no valid YAML ({reason}); correct it.") from None
        if content is not None and not isinstance(content, dict):
            raise ConfigError(
                f"{file}: expected keys with values, found a {type(content).__name__}; "
                "`--print_config` shows what a configuration looks like."
            )
        _count_nodes(content, file, {}, set())


def _count_nodes(node: Any, file: Path, known: dict[int, int], above: set[int]) -> int:  # noqa: ANN401
    """Return how many values a tree has once its anchors are unfolded; refuse an endless one."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ConfigError(f"{file}: an anchor contains itself; take its alias out of it.")
    inside = node.values() if isinstance(node, dict) else node
    above.add(id(node))
    count = 1 + sum(_count_nodes(one, file, known, above) for one in inside)
    above.discard(id(node))
    if count > _MAX_NODES:
        raise ConfigError(
            f"{file}: its anchors unfold to more than {_MAX_NODES:,} values; write fewer aliases."
        )
    known[id(node)] = count
    return count


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
    module, name = unknown.groups()
    if module.split(".")[0] != "sidrec":  # nothing else is imported for a hint
        return None
    found = nearest(name, dir(import_module(module)))
    return f"{module}.{found}" if found else None
