"""Quantizers with the settings that configs/ids ships, and how a result names its command."""

import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from sidrec.semantic_ids.quantizers.base import Quantizer

ROOT = Path(__file__).parents[1]


def quantizer_of(name: str) -> Any:  # noqa: ANN401 (each class has its own settings)
    """Return the quantizer of ``configs/ids/NAME.yaml``."""
    parser = ArgumentParser()
    parser.add_argument("--quantizer", type=Quantizer)
    content = yaml.safe_load((ROOT / "configs" / "ids" / f"{name}.yaml").read_text())
    return parser.instantiate(parser.parse_object({"quantizer": content["quantizer"]})).quantizer


def command_given() -> str:
    """Return the command of this process, folders of this machine left out."""
    words, hidden = [], False
    for word in sys.argv[1:]:
        words.append("FOLDER" if hidden else word)
        hidden = word in ("--scratch", "--corpus", "--vectors", "--output", "--out")
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
