"""``sidrec fuse``: Semantic IDs from the vectors of two runs."""

import sys
from pathlib import Path

from sidrec.run_source import allow_known_classes_only
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.command import IdsParser
from sidrec.semantic_ids.fuse import Fusion, device_named, fuse_ids
from sidrec.semantic_ids.quantiser import Quantiser
from sidrec.semantic_ids.report import quality_table


def main(args: list[str]) -> None:
    """Run ``sidrec fuse`` with the words after the command's name."""
    allow_known_classes_only()
    parser = IdsParser(
        prog="sidrec fuse",
        description="Make Semantic IDs from the vectors of two runs, or for another run's reader.",
    )
    parser.add_argument("--config", action="config", help="YAML file, e.g. configs/ids/NAME.yaml.")
    parser.add_argument("--from", type=str, required=True, help="Encoder run, or a bundle.")
    parser.add_argument("--and", type=str | None, help="The second one.")
    parser.add_argument("--fusion", type=Fusion, required=True, help="How two become one.")
    parser.add_argument("--dim", type=int | None, help="Dimensions that an SVD keeps.")
    parser.add_argument(
        "--reader", type=str | None, help="Run whose vectors a generator shall read in their place."
    )
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    parser.add_argument("--quantiser", type=Quantiser, required=True, help="How codes are made.")
    parser.add_argument("--policy", type=CollisionPolicy, required=True, help="What collisions do.")
    config = parser.instantiate(parser.parse_args(args))
    other, reader = (Path(given) if given else None for given in (config["and"], config.reader))
    bundle = fuse_ids(
        Path(config["from"]),
        other,
        fusion=config.fusion,
        dim=config.dim,
        reader=reader,
        out=Path(config.out),
        quantiser=config.quantiser,
        policy=config.policy,
        device=device_named(config.device),
    )
    sys.stdout.write(f"{quality_table(bundle)}\nwritten: {config.out}\n")
