"""Write the generated pages of the reference: commands, settings, configurations, API, errors.

mkdocs runs this file (plugin gen-files); the pages exist in the built site only.
"""

import ast
import contextlib
import io
import os
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from unittest import mock

import mkdocs_gen_files
import yaml

import sidrec
from sidrec.cli.front import TRAINING_COMMANDS
from sidrec.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "sidrec").rglob("*.py"))


def help_of(name: str) -> str:
    """Return what a command prints for ``--help``.

    Raises:
        RuntimeError: If it prints nothing.
    """
    module = import_module(COMMANDS[name][0])
    arguments = [name, "--help"] if name in TRAINING_COMMANDS else ["--help"]
    text = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sidrec"]),  # parsers take their name from it
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        module.main(arguments)
    if not text.getvalue().strip():
        raise RuntimeError(f"`sidrec {name} --help` printed nothing; see COMMANDS.")
    return text.getvalue().strip()


def commands() -> str:
    """Return one section a command, with its help."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "Every command answers `--help`; this page is that output."]
    for name, (_, purpose) in COMMANDS.items():
        parts += [f"## sidrec {name}", f"{purpose[0].upper()}{purpose[1:]}."]
        if name in TRAINING_COMMANDS and name != "fit":
            parts.append(
                "It takes the model, data and trainer options of [`sidrec fit`](#sidrec-fit)."
            )
        else:
            parts.append(f"```text\n{help_of(name)}\n```")
    return "\n\n".join(parts)


def settings() -> str:
    """Return every settings dataclass: fields, types, defaults, docstring."""
    parts = [
        "# Settings",
        "Nested settings of models and data, with their defaults. A YAML names only what differs.",
    ]
    for source in SOURCES:
        for node in ast.parse(source.read_text()).body:
            is_class = isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
            if is_class and not node.name.startswith("_") and node.name not in sidrec._MODULES:
                module = str(source.relative_to(ROOT))[:-3].replace("/", ".")
                parts.append(f"::: {module}.{node.name}")
    return "\n\n".join(parts)


def configurations() -> str:
    """Return every packaged YAML."""
    parts = ["# Packaged configurations", "`sidrec configs copy NAME` copies one to edit it."]
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        text = file.read_text().strip()
        yaml.safe_load(text)
        parts += [f"## {file.relative_to(ROOT / 'configs')}", f"```yaml\n{text}\n```"]
    return "\n\n".join(parts)


def api() -> str:
    """Return the page of public names."""
    parts = ["# Python API", "Every name imports from `sidrec`."]
    parts += [f"::: {module}.{name}" for name, module in sorted(sidrec._MODULES.items())]
    return "\n\n".join(parts)


def errors() -> str:
    """Return exit codes, and the text of every error with the file that raises it."""
    found: dict[str, list[str]] = defaultdict(list)
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            name = getattr(node.exc.func, "id", "")
            if name.endswith("Error") and name in dir(__import__("sidrec.errors").errors):
                message = _text(node.exc.args[0]) if node.exc.args else ""
                if message:
                    room = source.relative_to(ROOT / "sidrec").parts[0].removesuffix(".py")
                    found[name].append(f"- `{room}`: {message}")
    rows = ["| code | meaning |", "|---|---|", "| 0 | done |", "| 1 | failed |"]
    rows += ["| 2 | wrong usage or configuration |", "| 3 | bad data |"]
    rows += ["| 85 | preempted; the same command resumes |", "| 130 | interrupted (Ctrl-C) |"]
    parts = ["# Exit codes and errors", "\n".join(rows)]
    parts.append("Each error is one line: what was expected, what was found, what to do.")
    for name, lines in sorted(found.items()):
        parts += [f"## {name}", "\n".join(dict.fromkeys(lines))]
    return "\n\n".join(parts)


def _text(node: ast.expr) -> str:
    """Return a message with its values as ``…``; escaped for Markdown."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(
            part.value if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    else:
        return ""
    for mark in "\\`*_<>[]{}|":
        text = text.replace(mark, f"&#{ord(mark)};")
    return " ".join(text.split())


for page, make in (
    ("commands", commands),
    ("settings", settings),
    ("configurations", configurations),
    ("api", api),
    ("errors", errors),
):
    with mkdocs_gen_files.open(f"reference/{page}.md", "w") as out:
        out.write(make() + "\n")
