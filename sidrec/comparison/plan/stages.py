"""One stage of a comparison: a command with all that decides its result."""

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

SYSTEM_NAMES = ("popularity", "bm25", "neighbors", "dense", "enmf")
NEEDS_A_RUN = ("dense", "enmf")


Kind = Literal["embeddings", "ids", "generator", "baseline", "test"]
_KEY_LENGTH = 12


@dataclass(frozen=True)
class Input:
    """What a stage reads of an earlier one.

    Attributes:
        flag: That hands over the folder.
        stage: That made it.
        inside: Folder within the stage's.
    """

    flag: str
    stage: "Stage"
    inside: str = ""


@dataclass(frozen=True)
class Stage:
    """One command with all that decides its result.

    Attributes:
        kind: What it makes.
        label: For people; two labels may share a stage.
        command: Of ``sidrec``.
        configs: YAML files.
        options: Flags and values.
        inputs: Earlier stages.
        own_flag: Flag that names the stage's folder; empty for ``test``, which writes into its
            input's.
        corpus_flag: Flag that names the corpus; empty where the inputs know it.
        corpus: Corpus directory.
        fingerprint: Of the corpus.
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
        ]
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    def folder(self, out: Path) -> Path:
        """Return where the stage writes."""
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
    """One row of the table under one seed.

    Attributes:
        system: Row.
        seed: None for what no seed changes.
        last: Stage whose folder holds the figures.
        ids: Stage whose bundle the generator speaks; None for systems without Semantic IDs.
    """

    system: str
    seed: int | None
    last: Stage
    ids: Stage | None


def in_order(cells: Sequence[Cell]) -> list[Stage]:
    """Return every stage once, each after those that it reads."""
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


@cache
def _parsed(text: str) -> Any:  # noqa: ANN401
    """Parse each text once: every stage of a plan asks for its configurations."""
    return yaml.safe_load(text)
