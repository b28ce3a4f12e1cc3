"""Command-line checks and completion that run before torch is imported."""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from sidrec.configurations import find_config, read_mapping
from sidrec.console import say
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.runs.from_run import arguments_from_run, take_from

TRAINING_COMMANDS = ("fit", "validate", "test", "predict")
_TRAINING_KEYS = {"seed_everything", "trainer", "model", "data", "run_dir"}
_TRAINING_KEYS |= {"ckpt_path", "weights_only", "checkpoint_every_s", "upload", "best"}
KEYS = {  # top-level keys of commands whose parsers need torch; tests compare them with the parsers
    "fit": _TRAINING_KEYS,
    "validate": _TRAINING_KEYS | {"verbose"},
    "test": _TRAINING_KEYS | {"verbose"},
    "predict": _TRAINING_KEYS | {"return_predictions"},
    "ids": {"from", "embeddings", "corpus", "attributes", "out", "device", "quantizer", "policy"},
    "fuse": {"from", "and", "fusion", "dim", "reader", "out", "device", "quantizer", "policy"}
    | {"prefix_share"},
}
_ONLY_FLAGS = {"ids": {"append", "diff", "codes", "join"}} | {
    key: {"from"} for key in TRAINING_COMMANDS
}
_NO_KEYS = {"config", "print_config", "help"}
_DEFAULT_RUNS = "runs"
_BUNDLES = ("semantic_ids.json", "task_ids.json")  # one of them is in every bundle

Contents = list[tuple[str, dict[str, Any]]]  # file, its content


def prepared(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments in the form that the command's own parser takes.

    ``--config NAME`` becomes the path of a file. ``--from RUN`` of a training command becomes the
    arguments from that run. Callbacks of several configurations are joined, and ``fit`` gets a run
    directory.

    Raises:
        ConfigError: If a configuration is missing, broken, or has a key that does not exist, or a
            folder to write to is not local, or holds something else.
        DataError: If the corpus folder is missing.
        RunError: If the run of ``--from`` is missing or cannot serve the command.
    """
    arguments = _with_config_paths(arguments)
    if any(word in ("-h", "--help") or word.startswith("--help=") for word in arguments):
        return arguments
    source = take_from(arguments)[0]
    if source is not None and not source.exists():
        raise RunError(f"{source} does not exist; give --from the folder of a run.")
    if command in TRAINING_COMMANDS:
        _refuse_unknown_flags(command, arguments)
        if command != "fit" and not {"from", "config"} & {name for name, _ in _flags(arguments)}:
            raise ConfigError(f"`sidrec {command}` needs --from RUN, the folder of a finished run.")
        arguments = arguments_from_run(command, arguments)
    configs = [value for name, value in _flags(arguments) if name == "config" and value]
    contents = [(file, read_mapping(Path(file))) for file in configs]
    _refuse_unknown_keys(command, contents)
    _refuse_remote(arguments, contents)
    _refuse_foreign_folder(command, arguments, contents)
    _refuse_missing_corpus(command, arguments, contents)
    if command not in TRAINING_COMMANDS:
        return arguments
    if command == "fit":
        arguments = _with_run_dir(arguments, contents)
    return _with_joined_callbacks(arguments, contents)


def _with_config_paths(arguments: list[str]) -> list[str]:
    """Replace every ``--config NAME`` by the path of its file."""
    result = list(arguments)
    for place, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag not in ("--config", "-c"):
            continue
        if value:
            result[place] = f"--config={find_config(value)}"
        elif place + 1 < len(arguments):
            result[place : place + 2] = ["--config", str(find_config(arguments[place + 1]))]
    return result


def _flags(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield name and value of every flag; None for a flag without a value."""
    for word, after in pairwise([*arguments, "--"]):
        if word.startswith("--") and len(word) > len("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            yield name, value if equals else None if after.startswith("--") else after


def _refuse_unknown_flags(command: str, arguments: list[str]) -> None:
    valid = KEYS[command] | _ONLY_FLAGS[command] | _NO_KEYS
    for name, _ in _flags(arguments):
        if name.rstrip("+").split(".")[0] not in valid:
            raise ConfigError(f"`sidrec {command}` has no --{name}; {_hint(name, valid)}")


def _refuse_unknown_keys(command: str, contents: Contents) -> None:
    for file, content in contents if command in KEYS else ():
        for key in content:
            if str(key).rstrip("+").split(".")[0] not in KEYS[command]:
                hint = _hint(str(key), KEYS[command])
                raise ConfigError(f"{file} has a key '{key}', which does not exist; {hint}")


def _hint(name: str, valid: set[str]) -> str:
    from sidrec.errors import nearest

    near = nearest(name, sorted(valid))
    return f"did you mean '{near}'?" if near else f"choose from {', '.join(sorted(valid))}."


def _setting(key: str, arguments: list[str], contents: Contents) -> Any:  # noqa: ANN401
    """Return the value of a dotted key: the last flag's, else the last configuration's."""
    spellings = (key, key.replace(".", ".init_args.", 1))
    given = [value for name, value in _flags(arguments) if name in spellings and value]
    if given:
        return given[-1]
    for _, content in reversed(contents):
        part, _, leaf = key.partition(".")
        value = content.get(part)
        if leaf:
            value = value.get("init_args") if isinstance(value, dict) else None
            value = value.get(leaf) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _refuse_remote(arguments: list[str], contents: Contents) -> None:
    for key in ("run_dir", "out"):
        folder = _setting(key, arguments, contents)
        if isinstance(folder, str) and "://" in folder:
            raise ConfigError(
                f"--{key} {folder}: results are written to local folders only; give one, and copy "
                "it when the command has finished."
            )


def _refuse_foreign_folder(command: str, arguments: list[str], contents: Contents) -> None:
    """Refuse a bundle's folder that holds something else, which the bundle would replace."""
    folder = _setting("out", arguments, contents) if command in ("ids", "fuse") else None
    if not isinstance(folder, str) or any((Path(folder) / name).is_file() for name in _BUNDLES):
        return
    if Path(folder).is_file() or (Path(folder).is_dir() and any(Path(folder).iterdir())):
        raise ConfigError(
            f"--out {folder} exists and is not a bundle of Semantic IDs; give a new folder, so "
            "that nothing is lost."
        )


def _refuse_missing_corpus(command: str, arguments: list[str], contents: Contents) -> None:
    if command not in (*TRAINING_COMMANDS, "compare"):
        return
    key = "corpus" if command == "compare" else "data.corpus"
    folder = _setting(key, arguments, contents)
    if isinstance(folder, str) and not (Path(folder) / "corpus.json").is_file():
        flag = "" if command == "compare" else "--"
        raise DataError(
            f"{flag}{key} {folder} is not a corpus: it has no corpus.json; run sidrec prepare."
        )


def _with_run_dir(arguments: list[str], contents: Contents) -> list[str]:
    """Add a run directory to ``fit`` if none is named: ``runs/CONFIG-TIME``."""
    named = _setting("run_dir", arguments, contents)
    printed = any(name == "print_config" for name, _ in _flags(arguments))
    if named is not None or printed or not contents:
        return arguments
    if any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS")):
        raise ConfigError("Several processes need one --run_dir; name it.")
    stem = Path(contents[0][0]).stem
    chosen = ["--run_dir", f"{_DEFAULT_RUNS}/{stem}-{time.strftime('%Y%m%d-%H%M%S')}"]
    sys.argv += chosen  # Lightning starts the other ranks with these arguments
    return [*arguments, *chosen]


def _with_joined_callbacks(arguments: list[str], contents: Contents) -> list[str]:
    """Append the callbacks of later configurations to those of earlier ones.

    A parser keeps only the last list. A class in both lists gets the later one's settings.
    """
    named = [(file, _callbacks(content)) for file, content in contents]
    named = [(file, callbacks) for file, callbacks in named if callbacks]
    if len(named) < 2:
        return arguments
    joined = {one["class_path"]: one for _, callbacks in named for one in callbacks}
    files = " and ".join(file for file, _ in named)
    say(f"trainer.callbacks of {files} together: {', '.join(joined)}")
    last = named[-1][0]
    place = max(i for i, word in enumerate(arguments) if word in (last, f"--config={last}")) + 1
    flag = f"--trainer.callbacks={json.dumps(list(joined.values()))}"
    return [*arguments[:place], flag, *arguments[place:]]


def _callbacks(content: dict[str, Any]) -> list[dict[str, Any]]:
    trainer = content.get("trainer")
    given = trainer.get("callbacks") if isinstance(trainer, dict) else None
    listed = given if isinstance(given, list) else [given]
    named = [{"class_path": one} if isinstance(one, str) else one for one in listed]
    return [one for one in named if isinstance(one, dict) and "class_path" in one]
