"""The whole job on real data, timed: prepare, fit encoder, fit generator, test, baselines.

Usage: python benchmarks/real_run.py --size core --folder runs/real/core

Reads MovieLens latest-small, its descriptions and queries from the folder that SIDREC_DATA names.
A stage that was finished earlier is not run again and keeps the seconds it took then. The result
file holds every figure of ``metrics.json``, the baselines' and the dense encoder's, the settings,
the seconds and the peak memory of each stage.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sidrec.comparison.baselines.table import baseline_rows
from sidrec.corpus.store import Corpus
from sidrec.files import read_json, write_json

DATA = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies"
SIZES = {"core": ["--min_item_interactions", "20"], "full": []}
PACKAGES = ("torch", "lightning", "transformers", "datasets")


def main() -> None:
    """Run all stages and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    corpus, encoder, generator = (str(folder / name) for name in ("corpus", "enc", "gen"))
    configs = Path("configs/movies")
    stages = {
        "prepare": [
            *("prepare", "movielens", "--source", str(DATA / "ml-latest-small")),
            *("--descriptions", str(DATA / "descriptions.jsonl")),
            *("--queries", str(DATA / "queries_llm.jsonl")),
            *SIZES[chosen.size],
            *("--out", corpus),
        ],
        "fit_encoder": [
            *("fit", "--config", str(configs / f"encoder-{chosen.size}.yaml")),
            *("--data.corpus", corpus, "--run_dir", encoder),
        ],
        "test_encoder": ["test", "--from", encoder],
        "fit_generator": [
            *("fit", "--config", str(configs / f"generator-{chosen.size}.yaml")),
            *("--from", encoder, "--run_dir", generator),
        ],
        "test_generator": ["test", "--from", generator],
    }
    timings_file = folder / "timings.json"
    timings = read_json(timings_file) if timings_file.exists() else {}
    for name, arguments in stages.items():
        if timings.get(name, {}).get("arguments") != arguments:
            timings[name] = run_stage(name, arguments)
            write_json(timings_file, timings)
    result = collect(chosen.size, folder, timings)
    target = Path("benchmarks/results") / f"real_run_{chosen.size}.json"
    write_json(target, result)
    print(json.dumps(result["gates"], indent=2))
    print(f"written: {target}")


def run_stage(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run one command; stop everything when it fails."""
    print(f"--- {name}: sidrec {' '.join(arguments)}", flush=True)
    before = time.monotonic()
    subprocess.run([sys.executable, "-m", "sidrec", *arguments], check=True)
    seconds = time.monotonic() - before
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "arguments": arguments,
        "wall_s": round(seconds, 1),
        "peak_resident_mib_so_far": round(peak_mib),
    }


def collect(size: str, folder: Path, timings: dict[str, Any]) -> dict[str, Any]:
    """Gather figures, baselines and the gates they must pass."""
    figures = read_json(folder / "gen" / "metrics.json")
    dense = read_json(folder / "enc" / "metrics.json")
    rows = baseline_rows(Corpus.load(folder / "corpus"))
    baselines = {
        row.system: {"search": row.search, "recommendation": row.recommendation} for row in rows
    }
    popularity = baselines["popularity"]["recommendation"]
    bm25 = baselines["BM25"]["search"]
    dense_search, dense_rec = (dense[f"{task}/recall@30"] for task in ("search", "recommendation"))
    gates = {
        "dense search above BM25": dense_search > bm25,
        "dense search above TF-IDF (.538 core, .390 full; the data's README)": dense_search
        > {"core": 0.538, "full": 0.390}[size],
        "dense recommendation above popularity": dense_rec > popularity,
        "generator recommendation above popularity": figures["recommendation/recall@30"]
        > popularity,
        "valid fraction 1": figures["decoding/valid_fraction"] == 1.0,
        "collision rate 0": figures["ids/collision_rate"] == 0.0,
    }
    return {
        "command": f"python benchmarks/real_run.py --size {size} --folder runs/real/{size}",
        "total_wall_s": round(sum(stage["wall_s"] for stage in timings.values()), 1),
        "stages": {name: without_paths(stage, folder, size) for name, stage in timings.items()},
        "gates": gates,
        "generator": figures,
        "dense_encoder": dense,
        "baselines_recall@30": baselines,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {name: version(name) for name in PACKAGES},
    }


def without_paths(stage: dict[str, Any], folder: Path, size: str) -> dict[str, Any]:
    """Replace this machine's folders by the ones that the command above would use."""
    words = [
        word.replace(str(DATA), "$SIDREC_DATA/movies").replace(str(folder), f"runs/real/{size}")
        for word in stage["arguments"]
    ]
    return stage | {"arguments": "sidrec " + " ".join(words)}


if __name__ == "__main__":
    main()
