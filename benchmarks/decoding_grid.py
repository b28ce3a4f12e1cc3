"""Requests per second over catalogues, beams and models: sidrec beside three other decoders.

    python benchmarks/decoding_grid.py --out benchmarks/results/decoding_grid.json

Peers: transformers' `generate` with `prefix_allowed_tokens_fn` over a Python trie; the same without
a constraint (its lists hold Semantic IDs that no item has); the beam search of cornac 3's TIGER,
which takes one request at a time. All read the same encoder states, the encoder is timed with none.
Weights are random. The systems of a cell take turns; a rate is that of the median round, and beside
it stands the processor time of a request, which others on the machine distort less. `--movies`
takes a folder with a Semantic-ID bundle as a further catalogue.

`parts_ms` splits one search: `model` is T5 alone, `weigh` the joint generator's weighing of codes,
`bounds`, `counts` and `score_and_close` are the constraint (the addition of scores, which any beam
search needs, is in it), `choose` and `follow` any beam search's, `expand` the lists. `bound` counts
the multiplications and the bytes of a search against what matrix products and copies reached here.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from constraint_speed import forget_peak, peak_mib, zipf_table
from decoding_parts import bound_of, parts_of, seconds_of
from decoding_systems import PEER, SOURCE_TOKENS, Cell, own_systems, peer_systems

from sidrec.files import write_json
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import SemanticIdTable

# catalogue, model, beams, batch, rounds of sidrec, rounds of the peers (0: not run)
CELLS = [
    ("100000", "tiger", 30, 32, 5, 2),
    ("100000", "tiger", 30, 1, 15, 3),
    ("1000000", "tiger", 30, 32, 3, 2),
    ("100000", "tiger", 10, 1, 15, 3),
    ("100000", "tiger", 60, 1, 15, 3),
    ("100000", "tiger", 200, 1, 9, 2),
    ("100000", "tiger", 10, 32, 3, 2),
    ("100000", "tiger", 60, 32, 3, 1),
    ("100000", "tiger", 200, 32, 2, 0),  # the peers' copies of the source would take 5 GB
    ("1000000", "tiger", 30, 1, 15, 3),
    ("movies", "tiger", 30, 32, 3, 1),
    ("100000", "flan-t5-base", 30, 1, 3, 1),
    ("100000", "flan-t5-base", 10, 8, 2, 1),
]


def measure(
    table: SemanticIdTable, shape: str, beams: int, batch: int, own_rounds: int, peer_rounds: int
) -> dict[str, Any]:
    """Measure one cell."""
    cell = Cell(table, shape, batch)
    result: dict[str, Any] = {"beams": beams, "batch": batch, "model": shape}
    result["rounds"] = {"sidrec": own_rounds, "peers": peer_rounds}
    rounds = dict.fromkeys(own := own_systems(cell, beams), own_rounds)
    peers: dict[str, Callable[[], object]] = {}
    if peer_rounds:
        peers, result["same_lists_fraction"] = peer_systems(cell, beams)
        rounds |= dict.fromkeys(peers, peer_rounds)
    systems = own | peers
    wall: dict[str, list[float]] = {name: [] for name in systems}
    processor: dict[str, list[float]] = {name: [] for name in systems}
    result["peak_mib"] = {name: peak_of(work) for name, work in systems.items()}
    for turn in range(max(rounds.values())):
        for name in [name for name, last in rounds.items() if turn < last]:
            used = time.process_time()
            wall[name].append(seconds_of(systems[name]))
            processor[name].append(time.process_time() - used)
    result["requests_per_s"] = {n: batch / statistics.median(t) for n, t in wall.items()}
    result["latency_ms"] = {
        name: {"p50": statistics.median(taken) * 1000, "p99": _p99(taken) * 1000}
        for name, taken in wall.items()
    }
    cost = {name: statistics.median(used) / batch * 1000 for name, used in processor.items()}
    result["processor_ms_per_request"] = cost
    if peers:
        rates = result["requests_per_s"].items()
        result["ratio_to_python_trie"] = {
            name: rate / result["requests_per_s"][PEER] for name, rate in rates
        }
        result["processor_ratio"] = {name: cost[PEER] / own for name, own in cost.items()}
    parts = result["parts_ms"] = parts_of(cell, beams, own_rounds)
    constraint = parts["bounds"] + parts["counts"] + parts["score_and_close"]
    result["constraint_share"] = constraint / parts["whole"]
    result["bound"] = bound_of(cell, beams)
    result["load_average"] = os.getloadavg()[0]
    return result


def peak_of(work: Callable[[], object]) -> float:
    """Return the MiB that a call needs at most beyond what is in use; it also warms up."""
    started_at = forget_peak()
    work()
    return peak_mib() - started_at


def _p99(taken: list[float]) -> float:
    return sorted(taken)[min(len(taken) - 1, int(0.99 * len(taken)))]


def draw_plot(cells: list[dict[str, Any]], target: Path) -> None:
    """Draw the time of a request over the beams, 32 requests at once, 100,000 items."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.6))
    chosen = [
        cell
        for cell in cells
        if cell["catalogue"] == "100000" and cell["model"] == "tiger" and cell["batch"] == 32
    ]
    names = dict.fromkeys(name for cell in chosen for name in cell["requests_per_s"])
    for name in names:
        points = sorted(
            (cell["beams"], 1000 / cell["requests_per_s"][name])
            for cell in chosen
            if name in cell["requests_per_s"]
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=name.replace("_", " "))
    if not chosen:
        return
    axes.set(xscale="log", yscale="log", xlabel="beams", ylabel="time of a request, ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure the cells and write the result and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--movies", type=Path, help="folder of a Semantic-ID bundle")
    parser.add_argument("--cells", type=int, nargs="+", help="run these cells only, in this order")
    arguments = parser.parse_args()
    tables: dict[str, SemanticIdTable] = {}
    if arguments.movies:
        tables["movies"] = SemanticIdBundle.load(arguments.movies).table
    cells = []
    for number in arguments.cells or range(len(CELLS)):
        catalogue, shape, *numbers = CELLS[number]
        if catalogue == "movies" and "movies" not in tables:
            continue
        if catalogue not in tables:
            tables[catalogue] = zipf_table(int(catalogue), (256,) * 3, shared=False)
        started = time.perf_counter()
        cell = measure(tables[catalogue], shape, *numbers)
        cell |= {"catalogue": catalogue, "items": len(tables[catalogue].codes)}
        cells.append(cell)
        rates = {name: round(rate, 1) for name, rate in cell["requests_per_s"].items()}
        print(catalogue, shape, numbers, rates, f"{cell['constraint_share']:.3f}")
        print("  processor", cell.get("processor_ratio"), flush=True)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
        result = {
            "settings": {"source_tokens": SOURCE_TOKENS},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "cells": cells,
        }
        write_json(arguments.out, result)
        draw_plot(cells, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
