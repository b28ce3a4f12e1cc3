"""Starts, residual normalisation and beams of residual k-means, over data sets and seeds.

Use: python benchmarks/quantiser_defaults.py --scratch FOLDER --corpus CORPUS --items ITEM_JSON
3 x 256 codes, at most 25 iterations a level. Error and perplexities are those of the codes before
collisions are resolved; the time is processor time of the fit.
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
from quantiser_sets import load_set

from sidrec.files import write_json
from sidrec.semantic_ids.collisions import group_numbers
from sidrec.semantic_ids.quality import level_usage, relative_error
from sidrec.semantic_ids.refinement import refined
from sidrec.semantic_ids.rq_kmeans import RqKMeansQuantiser

STARTS = ("progressive", "k-means++", "central", "mixed")


def measure(vectors: torch.Tensor, options: argparse.Namespace, seed: int) -> list[dict]:
    """Return one record per start, normalisation and beam width."""
    found = []
    for init in options.starts:
        for normalise in (False, True):
            settings = RqKMeansQuantiser(
                (256, 256, 256), 25, 1e-4, 1, init, 256, normalise, seed,
                train_rows_per_code=options.train_rows_per_code,
            )  # fmt: skip
            began = time.process_time()
            fitted = settings.fit(vectors)
            fit_s = time.process_time() - began
            ways = [(fitted, 0)]
            if options.refine:
                ways.append((refined(vectors, fitted.encode(vectors), fitted), 1))
            for (books, refine_rounds), beam_width in product(ways, options.beams):
                codes = replace(books, beam_width=beam_width).encode(vectors)
                record = {
                    "init": init,
                    "normalise_residuals": normalise,
                    "refine_rounds": refine_rounds,
                    "beam_width": beam_width,
                    "seed": seed,
                    "fit_cpu_s": fit_s,
                    "error": relative_error(vectors, codes, books),
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
    keys = ("init", "normalise_residuals", "refine_rounds", "beam_width")
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
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--starts", nargs="+", default=STARTS)
    parser.add_argument("--refine", action="store_true", help="also refine the codebooks, once")
    parser.add_argument("--train_rows_per_code", type=int)
    parser.add_argument("--output", default="benchmarks/results/quantiser_defaults.json")
    options = parser.parse_args()
    target = Path(options.output)
    results: dict[str, dict] = json.loads(target.read_text())["results"] if target.exists() else {}
    for name in options.sets:
        array = load_set(name, options.scratch, corpus=options.corpus, items=options.items)
        vectors = torch.from_numpy(array.copy())
        records = [r for seed in options.seeds for r in measure(vectors, options, seed)]
        results[f"{name}, refined" if options.refine else name] = {
            "shape": list(vectors.shape),
            "train_rows_per_code": options.train_rows_per_code,
            "rows": summary(records),
        }
        write_json(
            target,
            {
                "command": "python benchmarks/quantiser_defaults.py --sets "
                + " ".join(options.sets)
                + " --seeds "
                + " ".join(map(str, options.seeds)),
                "settings": "3 x 256 codes, at most 25 iterations, tolerance 1e-4",
                "unit": "fit_cpu_s: processor seconds; the rest are fractions or codes",
                "torch_threads": torch.get_num_threads(),
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
