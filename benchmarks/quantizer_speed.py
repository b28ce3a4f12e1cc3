"""Residual k-means beside its peers: processor time, error, unique Semantic IDs, one process.

Use: python benchmarks/quantizer_speed.py --scratch FOLDER --corpus CORPUS --sets movies
Needs: pip install fastkmeans semantic-id cornac scikit-learn faiss-cpu (those missing are named).

3 x 256 codes. Systems take turns; figures are medians over rounds, each with its own seed. Time is
processor time of fit and encoding over all threads, which other work on the machine disturbs less
than the clock. Error and unique are those of the codes before collisions are resolved; for sidrec
also the distinct IDs after it. At most 25 iterations a level; 256 training rows a code as in
faiss.Kmeans (MiniBatchKMeans, semantic-id and cornac have no such limit), or all rows.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from quantizer_peers import PEERS, Answer
from quantizer_sets import load_set
from shipped import command_given, quantizer_of

from sidrec.files import write_json
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel, group_numbers

ITERATIONS, FAISS_ROWS = 25, 256
VARIANTS: dict[str, dict[str, Any]] = {
    "sidrec (default)": {},
    "sidrec, all 25 iterations": {"tolerance": -1.0},
    "sidrec, not refined": {"num_refit_rounds": 0},
    "sidrec, beam 5": {"beam_width": 5},
    "sidrec, greedy at all levels": {"init": "greedy"},
    "sidrec, residuals normalized": {"normalize_residuals": True},
    "sidrec, mixed start": {"init": "mixed", "sample_rows_per_code": 64},
    # what faiss.Kmeans does, and nothing else: a cheap start and 25 iterations
    "sidrec, 25 plain iterations": {"init": "central", "num_refit_rounds": 0, "tolerance": -1.0},
}


def sidrec_run(settings: dict, rows: int | None) -> Callable[[np.ndarray, int], Answer]:
    """Return a run with the shape of a peer's: ``configs/ids/default.yaml`` with changes."""
    tolerance = settings.get("tolerance", 0.0)
    settings = {k: max(v, 0.0) if k == "tolerance" else v for k, v in settings.items()}

    def run(vectors: np.ndarray, seed: int) -> Answer:
        quantizer = replace(
            quantizer_of("default"), seed=seed, train_rows_per_code=rows, **settings
        )
        if tolerance < 0:  # no iteration is left out, as in peers that have no tolerance
            object.__setattr__(quantizer, "tolerance", tolerance)
        fitted = quantizer.fit(torch.from_numpy(vectors))
        codes = fitted.encode(torch.from_numpy(vectors))
        return codes.numpy(), fitted.decode(codes).numpy()

    return run


def quality(vectors: np.ndarray, answer: Answer) -> dict[str, float]:
    """Return relative error and unique fraction of codes."""
    codes, decoded = answer
    lost = spread = 0.0
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536]
        lost += float(np.square(part - decoded[start : start + 65_536]).sum(dtype=np.float64))
        spread += float(np.square(part - mean).sum(dtype=np.float64))
    groups = group_numbers(torch.from_numpy(np.asarray(codes, dtype=np.int64)))
    return {"error": lost / spread, "unique": (int(groups.max()) + 1) / len(codes)}


def unique_after(vectors: np.ndarray, seed: int) -> float:
    """Return distinct IDs over items after ``ReassignLastLevel``."""
    rows = torch.from_numpy(vectors)
    fitted = replace(quantizer_of("default"), seed=seed).fit(rows)
    resolved = ReassignLastLevel().resolve(rows, fitted.encode(rows), fitted)
    return (int(group_numbers(resolved.codes).max()) + 1) / len(rows)


def systems(left_out: dict[str, str], *, all_rows: bool) -> dict[str, Callable[..., Answer]]:
    """Return the runs to compare."""
    rows = None if all_rows else FAISS_ROWS
    chosen: dict[str, Callable[..., Answer]]
    chosen = {name: sidrec_run(settings, rows) for name, settings in VARIANTS.items()}
    for name, peer in PEERS.items():
        chosen[name] = partial(peer, iterations=ITERATIONS, all_rows=all_rows)
    unknown = set(left_out) - set(chosen)
    if unknown:
        raise SystemExit(f"--leave_out names {sorted(unknown)}; there are {list(chosen)}")
    return {name: run for name, run in chosen.items() if name not in left_out}


def compare(vectors: np.ndarray, rounds: int, left_out: dict[str, str], *, all_rows: bool) -> dict:
    """Return per system the median figures over rounds, or why there are none."""
    runs = systems(left_out, all_rows=all_rows)
    found: dict[str, list[dict]] = {name: [] for name in runs}
    for seed in range(1, rounds + 1):
        for name, run in runs.items():
            began, clock = time.process_time(), time.perf_counter()
            try:
                answer = run(vectors, seed)
            except ImportError as error:
                found[name].append({"missing": str(error)})
                continue
            record = {"cpu_s": time.process_time() - began, "wall_s": time.perf_counter() - clock}
            found[name].append(record | quality(vectors, answer))
            print(name, seed, json.dumps(found[name][-1]), file=sys.stderr)
    rows = {name: medians(records) for name, records in found.items()}
    return rows | {name: {"left_out": reason} for name, reason in left_out.items()}


def medians(records: list[dict]) -> dict:
    """Return the median of each figure, and the range of the times."""
    if "missing" in records[0]:
        return records[0]
    figures = {key: median(record[key] for record in records) for key in records[0]}
    return figures | {"cpu_s_all": [record["cpu_s"] for record in records]}


def verdict(rows: dict[str, dict]) -> dict:
    """Compare each sidrec variant with the best peer in each figure."""
    peers = [row for name, row in rows.items() if not name.startswith("sidrec") and "error" in row]
    if not peers:
        return {}
    fastest = min(row["cpu_s"] for row in peers)
    faiss_s = rows.get("faiss.Kmeans", {}).get("cpu_s", float("nan"))
    error, unique = min(row["error"] for row in peers), max(row["unique"] for row in peers)
    return {
        name: {
            "cpu_over_fastest_peer": row["cpu_s"] / fastest,
            "cpu_over_faiss_kmeans": row["cpu_s"] / faiss_s,
            "error_over_best_peer": row["error"] / error,
            "unique_minus_best_peer": row["unique"] - unique,
        }
        for name, row in rows.items()
        if name.startswith("sidrec") and "error" in row
    }


def versions() -> dict[str, str]:
    """Return the versions of the systems."""
    found = {}
    for name in ("torch", "faiss-cpu", "scikit-learn", "fastkmeans", "semantic-id", "cornac"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measure the sets and add them to the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--sets", nargs="+", default=["movies", "mixture-100000"])
    parser.add_argument("--leave_out", nargs="*", default=[], metavar="SYSTEM=REASON")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[3], help="one for all, or per set"
    )
    parser.add_argument("--all_rows", action="store_true", help="no limit of training rows")
    parser.add_argument("--output", default="benchmarks/results/quantizer_speed.json")
    options = parser.parse_args()
    target = Path(options.output)
    results = json.loads(target.read_text())["results"] if target.exists() else {}
    left_out = dict(pair.split("=", 1) for pair in options.leave_out)
    rounds = options.rounds * (len(options.sets) if len(options.rounds) == 1 else 1)
    for name, num_rounds in zip(options.sets, rounds, strict=True):
        array = load_set(name, options.scratch, corpus=options.corpus, items=options.items)
        vectors = np.array(array)
        rows = compare(vectors, num_rounds, left_out, all_rows=options.all_rows)
        num_train = len(vectors) if options.all_rows else min(len(vectors), FAISS_ROWS * 256)
        dim = vectors.shape[1]
        flops = 2 * 3 * 256 * dim * (ITERATIONS * num_train + len(vectors))
        key = f"{name}, {'all rows' if options.all_rows else '256 rows a code'}"
        results[key] = {
            "command": command_given(),
            "shape": list(vectors.shape),
            "rounds": num_rounds,
            "product_flops_at_25_iterations": flops,
            "systems": rows,
            "sidrec_against_peers": verdict(rows),
            "unique_after_reassigning": unique_after(vectors, 1),
        }
        write_json(
            target,
            {
                "command": "see each result; one call may add to the file of another",
                "unit": "cpu_s: processor seconds of fit and encoding, medians over rounds; "
                "error: squared error over squared deviation from the mean",
                "torch_threads": torch.get_num_threads(),
                "versions": versions(),
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
