"""``sidrec configs``: list the packaged configurations, or copy one."""

import sys
from itertools import takewhile

from sidrec.cli.parser import CommandParser
from sidrec.configurations import copy_config, packaged_folder, packaged_names


def main(args: list[str]) -> None:
    """Run ``sidrec configs`` with the words after the command's name."""
    parser = CommandParser(
        prog="sidrec configs",
        description="List the packaged configurations, which every --config takes by name; "
        "`sidrec configs copy NAME` copies one.",
    )
    commands = parser.add_subcommands(required=False)
    copy = CommandParser(description="Copy a packaged configuration, to change it.")
    copy.add_argument("name", type=str, help="As the list shows it, e.g. ids/tiger.yaml.")
    copy.add_argument("--out", type=str | None, help="File to write; default: its name, here.")
    commands.add_subcommand("copy", copy)
    given = parser.parse_args(args)
    if given.subcommand is None:
        sys.stdout.write(_table())
        return
    written = copy_config(given.copy.name, given.copy.out)
    sys.stdout.write(f"written: {written}\n")


def _table() -> str:
    names = packaged_names()
    width = max(map(len, names))
    return "".join(f"{name.ljust(width)}  {_first_sentence(name)}\n" for name in names)


def _first_sentence(name: str) -> str:
    """Return the first sentence of the comment at the head of a configuration."""
    lines = (packaged_folder() / name).read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line[1:].strip() for line in comment).partition(". ")[0].rstrip(".")
