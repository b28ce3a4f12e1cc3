"""Starts and refinement of residual k-means, over data sets and seeds.

Use: python benchmarks/quantizer_defaults.py --scratch FOLDER --corpus CORPUS --items ITEM_JSON
Settings of configs/ids/default.yaml but for those that a row names; --normalize and --beams add
residual normalization and beams. Error and perplexities are those of the codes before collisions
are resolved; the time is processor time of the fit. Refinement goes by all vectors here, where a
fit goes by its training rows.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from quantizer_sets import load_set
from shipped import command_given, quantizer_of

from sidrec.files import write_json
from sidrec.semantic_ids.collisions.policies import group_numbers
from sidrec.semantic_ids.quality.id_metrics import level_usage, relative_error
from sidrec.semantic_ids.quantizers.rq_kmeans import joint_refit

STARTS = ("progressive", "k-means++", "central", "mixed", "greedy", "greedy-mixed")


def measure(vectors: torch.Tensor, options: argparse.Namespace, seed: int) -> list[dict]:
    """Return one record per start, normalization, rounds of refinement and beam width."""
    found = []
    for init, normalize in product(options.starts, map(bool, options.normalize)):
        settings = replace(
            quantizer_of("default"),
            init=init,
            normalize_residuals=normalize,
            num_refit_rounds=0,
            seed=seed,
            train_rows_per_code=options.train_rows_per_code,
        )
        began = time.process_time()
        fitted = settings.fit(vectors)
        fit_s = time.process_time() - began
        for num_refit_rounds in range(options.num_refit_rounds + 1):
            if num_refit_rounds:
                began = time.process_time()
                fitted = joint_refit(vectors, fitted.encode(vectors), fitted)
                fit_s += time.process_time() - began
            for beam_width in options.beams:
                codes = replace(fitted, beam_width=beam_width).encode(vectors)
                record = {
                    "init": init,
                    "normalize_residuals": normalize,
                    "num_refit_rounds": num_refit_rounds,
                    "beam_width": beam_width,
                    "seed": seed,
                    "fit_cpu_s": fit_s,
                    "error": relative_error(vectors, codes, fitted),
                    "unique": (int(group_numbers(codes).max()) + 1) / len(codes),
                    "perplexity": [
                        level_usage(codes[:, level], num_codes=256)["perplexity"]
                        for level in range(3)
                    ],
                }
                found.append(record)
                print(json.dumps(record), file=sys.stderr)
    return found


def summary(records: list[dict]) -> list[dict]:
    """Return the mean over seeds, per setting, with the range of error and unique."""
    keys = ("init", "normalize_residuals", "num_refit_rounds", "beam_width")
    rows = []
    for values in dict.fromkeys(tuple(record[key] for key in keys) for record in records):
        same = [r for r in records if tuple(r[key] for key in keys) == values]
        row = dict(zip(keys, values, strict=True))
        for name in ("fit_cpu_s", "error", "unique"):
            row[name] = mean(r[name] for r in same)
        for name in ("error", "unique"):
            row[f"{name}_range"] = [min(r[name] for r in same), max(r[name] for r in same)]
        row["perplexity"] = [mean(r["perplexity"][level] for r in same) for level in range(3)]
        row["seeds"] = [r["seed"] for r in same]
        rows.append(row)
    return rows


def main() -> None:
    """Measure every set and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--sets", nargs="+", default=["movies", "industrial", "mixture-100000"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beams", type=int, nargs="+", default=[1])
    parser.add_argument("--normalize", type=int, nargs="+", choices=[0, 1], default=[0])
    parser.add_argument("--starts", nargs="+", default=STARTS)
    parser.add_argument(
        "--num_refit_rounds", type=int, default=3, help="0 to this many, each measured"
    )
    parser.add_argument("--train_rows_per_code", type=int, default=256)
    parser.add_argument("--output", default="benchmarks/results/quantizer_defaults.json")
    options = parser.parse_args()
    target = Path(options.output)
    results: dict[str, dict] = json.loads(target.read_text())["results"] if target.exists() else {}
    for name in options.sets:
        array = load_set(name, options.scratch, corpus=options.corpus, items=options.items)
        vectors = torch.from_numpy(array.copy())
        records = [r for seed in options.seeds for r in measure(vectors, options, seed)]
        results[name] = {
            "command": command_given(),
            "shape": list(vectors.shape),
            "train_rows_per_code": options.train_rows_per_code,
            "rows": summary(records),
        }
        write_json(
            target,
            {
                "command": "see each result; one call may add to the file of another",
                "settings": "configs/ids/default.yaml, but for what a row names",
                "unit": "fit_cpu_s: processor seconds; the rest are fractions or codes",
                "torch_threads": torch.get_num_threads(),
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
