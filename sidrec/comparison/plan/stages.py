"""Stages of a comparison: a command with everything that decides its result."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from sidrec import __version__
from sidrec.configurations import find_config
from sidrec.errors import ConfigError
from sidrec.files import sha256_of_file

SYSTEM_NAMES = (
    "popularity",
    "bm25",
    "neighbors",
    "ease",
    "ease_recency",
    "next_item",
    "dense",
    "hybrid",
    "enmf",
)
NEEDS_A_RUN = ("dense", "hybrid", "enmf")


Kind = Literal["embeddings", "ids", "generator", "baseline", "test"]
_KEY_LENGTH = 12


@dataclass(frozen=True)
class Input:
    """Input that a stage reads from an earlier one.

    Attributes:
        flag: Flag that passes the folder.
        stage: Stage that makes the input.
        inside: Subfolder of the stage's folder.
    """

    flag: str
    stage: "Stage"
    inside: str = ""


@dataclass(frozen=True)
class Stage:
    """One command with everything that decides its result.

    Attributes:
        kind: Kind of result.
        label: Name for people; two labels may share a stage.
        command: Command of ``sidrec``.
        configs: YAML files.
        options: Flags and values.
        inputs: Earlier stages that it reads.
        own_flag: Flag that names the stage's folder; empty for ``test``, which writes into the
            folder of its input.
        corpus_flag: Flag that names the corpus; empty where the inputs know it.
        corpus: Corpus directory.
        fingerprint: Fingerprint of the corpus.
        files: Further files whose content decides the result.
    """

    kind: Kind
    label: str
    command: str
    configs: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    inputs: tuple[Input, ...]
    own_flag: str
    corpus_flag: str
    corpus: str
    fingerprint: str
    files: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Hash of version, command, content of the configurations, flags, inputs and corpus."""
        content = [
            __version__,
            self.command,
            [read_yaml(config) for config in self.configs],
            self.options,
            [(one.flag, one.stage.key, one.inside) for one in self.inputs],
            self.fingerprint,
            *(_digest(Path(file)) for file in self.files),
        ]
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    def folder(self, out: Path) -> Path:
        """Return the output folder of the stage."""
        if not self.own_flag:
            return self.inputs[0].stage.folder(out)
        return out / "runs" / f"{self.kind}-{self.key}"

    def arguments(self, out: Path) -> list[str]:
        """Return the words after ``sidrec``."""
        words = [self.command]
        for config in self.configs:
            words += ["--config", config]
        if self.corpus_flag:
            words += [self.corpus_flag, self.corpus]
        for one in self.inputs:
            words += [one.flag, str(one.stage.folder(out) / one.inside)]
        for flag, value in self.options:
            words += [flag, value]
        return [*words, self.own_flag, str(self.folder(out))] if self.own_flag else words


@dataclass(frozen=True)
class Cell:
    """Table cell: one system under one seed.

    Attributes:
        system: Name of the row.
        seed: Seed of the runs; None if no seed affects the system.
        last: Stage whose folder holds the figures.
        ids: Stage that makes the generator's bundle; None for systems without Semantic IDs.
    """

    system: str
    seed: int | None
    last: Stage
    ids: Stage | None


def in_order(cells: Sequence[Cell]) -> list[Stage]:
    """Return every stage once, each after its inputs."""
    ordered: dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        for one in stage.inputs:
            add(one.stage)
        ordered.setdefault(stage.key, stage)

    for cell in cells:
        add(cell.last)
    return list(ordered.values())


def read_yaml(path: str) -> Any:  # noqa: ANN401
    """Return the content of a configuration file.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return _parsed(find_config(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Configuration {path} cannot be read: {reason}") from None


def _digest(file: Path) -> str:
    try:
        return sha256_of_file(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None


@cache
def _parsed(text: str) -> Any:  # noqa: ANN401
    """Parse each text once, since every stage of a plan reads its configurations."""
    return yaml.safe_load(text)
