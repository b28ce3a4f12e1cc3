"""``sidrec fuse``: Semantic IDs from the embeddings of two runs, shared or per task."""

import sys
from pathlib import Path
from typing import get_args

from sidrec.cli.parser import CommandParser
from sidrec.distributed import device_named
from sidrec.errors import ConfigError
from sidrec.plugins import load_plugins
from sidrec.runs.from_run import allow_known_classes_only
from sidrec.semantic_ids.bundle.quality_report import quality_table
from sidrec.semantic_ids.collisions.policies import CollisionPolicy
from sidrec.semantic_ids.per_task.make_task_ids import FUSIONS, TaskFusion, fuse_ids, make_task_ids
from sidrec.semantic_ids.per_task.prefix_share import PrefixShareSettings
from sidrec.semantic_ids.quantizers.base import Quantizer

_FUSIONS = f"{', '.join((*FUSIONS, *get_args(TaskFusion)))}, or a plug-in"


def main(args: list[str]) -> None:
    """Run ``sidrec fuse`` with the words after the command's name."""
    allow_known_classes_only()
    load_plugins()
    parser = _parser()
    config = parser.instantiate(parser.parse_args(args))
    run = Path(config["from"])
    other, reader = (Path(given) if given else None for given in (config["and"], config.reader))
    common = {
        "reader": reader,
        "out": Path(config.out),
        "policy": config.policy,
        "device": device_named(config.device),
    }
    if config.fusion in get_args(TaskFusion):
        if other is None or config.dim is not None:
            raise ConfigError(f"--fusion {config.fusion} needs --and RUN and takes no --dim.")
        made = make_task_ids(
            run,
            other,
            fusion=config.fusion,
            quantizer=config.quantizer,
            prefix_share=config.prefix_share,
            **common,
        )
        tables = [f"{task}\n{quality_table(bundle)}" for task, bundle in made.bundles.items()]
    else:
        if config.quantizer is None:
            raise ConfigError(f"--fusion {config.fusion} needs quantizer; give --config FILE.")
        fused = fuse_ids(
            run,
            other,
            fusion=config.fusion,
            dim=config.dim,
            quantizer=config.quantizer,
            **common,
        )
        tables = [quality_table(fused)]
    sys.stdout.write("\n\n".join(tables) + f"\nwritten: {config.out}\n")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sidrec fuse",
        parts=(Quantizer, CollisionPolicy),
        source="Encoder run, or a bundle.",
        source_required=True,
        description="Make Semantic IDs from the vectors of two runs, or for another run's reader. "
        "With separate and prefix_share each task gets IDs of its own: --from serves search, --and "
        "recommendation.",
    )
    parser.add_argument("--and", type=str | None, help="The second one.")
    parser.add_argument(
        "--fusion", type=str, required=True, help=f"How two become one: {_FUSIONS}."
    )
    parser.add_argument("--dim", type=int | None, help="Dimensions that an SVD keeps.")
    parser.add_argument(
        "--reader", type=str | None, help="Run whose vectors a generator reads in their place."
    )
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    parser.add_argument("--quantizer", type=Quantizer | None, help="How codes are made.")
    parser.add_argument(
        "--prefix_share", type=PrefixShareSettings | None, help="How codes are made instead."
    )
    parser.add_argument("--policy", type=CollisionPolicy, required=True, help="What collisions do.")
    return parser
