"""``sidrec export``: folder of a run for sentence-transformers, transformers and datasets."""

import sys
from pathlib import Path

from sidrec.cli.parser import CommandParser
from sidrec.plugins import load_plugins
from sidrec.runs.directory import RunDirectory


def main(args: list[str]) -> None:
    """Run ``sidrec export`` with the words after the command's name."""
    parser = CommandParser(
        prog="sidrec export",
        description="Write a run as a folder that other libraries load: an encoder for "
        "sentence-transformers, a generator for transformers, the Semantic IDs for datasets, each "
        "with its card.",
        source="Run directory of an encoder or a generator.",
        source_required=True,
    )
    parser.add_argument("--out", type=str, required=True, help="New folder.")
    parser.add_argument(
        "--push_to_hub",
        type=str | None,
        help="OWNER/NAME on the Hugging Face hub to upload to; created private if it is new.",
    )
    given = parser.parse_args(args)
    load_plugins()
    from sidrec.export.export_run import check_hub_name, export_run, push_to_hub

    out, hub = Path(given.out), given.push_to_hub
    if hub is not None:
        check_hub_name(hub)
    export_run(RunDirectory(Path(given["from"])), out, name=hub or str(out))
    sys.stdout.write(f"written: {out}\n")
    if hub is not None:
        sys.stdout.write("".join(f"pushed: {name}\n" for name in push_to_hub(out, hub)))
