"""What the catalogue adds to a decoding step: building the trie, its memory, and the mask step.

    python benchmarks/constraint_speed.py --out benchmarks/results/constraint_speed.json

A step of 640 beams (32 requests, 20 beams each) stands at the last level of 3 x 256 codes, where
the catalogue is largest. The mask step is what turns beams and log-probabilities into scores that
no impossible code has: bounds of the children, counts of allowed items, closing. Choosing the best
and following them, which any beam search needs, are timed beside it. The peer is transformers'
``PrefixConstrainedLogitsProcessor`` over a Python trie. Weights play no part. One thread a core;
median and best of the rounds, because others may use the machine.
"""

import argparse
import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from decoding_speed import python_trie
from transformers import PrefixConstrainedLogitsProcessor

from sidrec.files import write_json
from sidrec.generator.decoding.beam_search import (
    Beams,
    advance,
    best_columns,
    candidate_scores,
    follow,
    over_children,
)
from sidrec.generator.decoding.item_filters import (
    AllItemsBut,
    SharedItems,
    SharedSet,
    allowed_in_children,
)
from sidrec.generator.decoding.transitions import ChildList
from sidrec.generator.decoding.trie import SemanticIdTrie, pack
from sidrec.types import SemanticIdTable

REQUESTS, BEAMS, FIRST_CODE = 32, 20, 1000
ZIPF = 1.05


def zipf_table(num_items: int, sizes: tuple[int, ...], *, shared: bool) -> SemanticIdTable:
    """Draw Semantic IDs whose codes follow Zipf's law; distinct, or some shared by items."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros((0, len(sizes)), dtype=torch.int16)
    ends = [(torch.arange(1, size + 1).double() ** -ZIPF).cumsum(0) for size in sizes]
    while len(rows) < num_items:
        drawn = [
            torch.searchsorted(end / end[-1], torch.rand(num_items, generator=generator).double())
            for end in ends
        ]
        block = torch.stack(drawn, dim=1).clamp(max=max(sizes) - 1).to(torch.int16)
        rows = torch.cat([rows, block])
        if not shared:
            keys = pack(rows.long(), sizes).unique()
            rows = torch.stack([keys // 256**place % 256 for place in (2, 1, 0)], dim=1).short()
    order = torch.randperm(len(rows), generator=generator)[:num_items]
    return SemanticIdTable(rows[order], sizes)


def peak_mib() -> float:
    """Return the greatest memory that this process had since ``forget_peak``."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Give back what is free, start measuring the peak again; return what is in use now, in MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def timed(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return median and best milliseconds, after one call that does not count."""
    work()
    taken, used = [], []
    for _ in range(rounds):
        started, before = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - started) * 1000)
        used.append((time.process_time() - before) * 1000)
    return {
        "p50_ms": statistics.median(taken),
        "best_ms": min(taken),
        "processor_p50_ms": statistics.median(used),  # of all threads together
    }


def bytes_of(trie: SemanticIdTrie) -> int:
    """Return what the arrays of a trie take."""
    found = [trie.keys, trie.items, trie.position]
    for level in trie.children:
        if isinstance(level, ChildList):
            found += [level.child_of, level.starts, level.codes]
        table = level.many if isinstance(level, ChildList) else level
        found += [table.row_of, table.bounds]
    return sum(array.numel() * array.element_size() for array in {id(a): a for a in found}.values())


def build(table: SemanticIdTable, rounds: int) -> tuple[SemanticIdTrie, dict[str, float]]:
    """Build the trie a few times."""
    started_at = forget_peak()
    trie = SemanticIdTrie.from_table(table, None)
    peak = peak_mib() - started_at
    taken = timed(lambda: SemanticIdTrie.from_table(table, None), rounds)
    return trie, {
        "seconds_p50": taken["p50_ms"] / 1000,
        "seconds_best": taken["best_ms"] / 1000,
        "arrays_mib": bytes_of(trie) / 2**20,
        "peak_mib": peak,
    }


def beams_at(trie: SemanticIdTrie, depth: int) -> Beams:
    """Put beams on the prefixes of random items."""
    generator = torch.Generator().manual_seed(1)
    position = torch.randint(trie.num_items, (REQUESTS, BEAMS), generator=generator)
    span = 1
    for size in trie.codebook_sizes[depth:]:
        span *= size
    prefix = trie.keys[position] // span
    low = torch.searchsorted(trie.keys, prefix * span).int()
    high = torch.searchsorted(trie.keys, (prefix + 1) * span).int()
    return Beams(low, high, -torch.rand(REQUESTS, BEAMS, generator=generator))


def step_costs(trie: SemanticIdTrie, rounds: int) -> dict[str, dict[str, float]]:
    """Time the parts of a step at the last level."""
    level, size = trie.num_levels - 1, trie.codebook_sizes[-1]
    beams = beams_at(trie, level)
    generator = torch.Generator().manual_seed(2)
    says = torch.randn(REQUESTS, BEAMS, size, generator=generator).log_softmax(dim=-1)
    gone = torch.randint(trie.num_items, (REQUESTS, 30), generator=generator)
    every, but = AllItemsBut.of(trie, gone[:, :0]), AllItemsBut.of(trie, gone)
    stock = torch.rand(1, trie.num_items, generator=generator) < 0.5
    some = SharedItems.of(trie, SharedSet.of(trie, stock[0]), gone[:, :0])
    even = torch.arange(trie.num_items + 1).double().expand(REQUESTS, -1)
    bounds = trie.child_bounds(beams.lo, beams.hi, level=level)
    counts = allowed_in_children(every, trie, bounds, level=level)
    scored = candidate_scores(beams.scores, says, counts).flatten(1)
    chosen = best_columns(scored, BEAMS)
    parent, codes, scores = chosen // size, chosen % size, scored.gather(1, chosen)

    def masked(allowed: AllItemsBut | SharedItems) -> torch.Tensor:
        ends = trie.child_bounds(beams.lo, beams.hi, level=level)
        inside = allowed_in_children(allowed, trie, ends, level=level)
        return candidate_scores(beams.scores, says, inside)

    def whole(mass: torch.Tensor | None) -> object:
        return advance(beams, says, trie, every, level=level, width=BEAMS, mass_before=mass)

    parts: dict[str, Callable[[], object]] = {
        "mask_step": lambda: masked(every),
        "mask_step_30_excluded": lambda: masked(but),
        "mask_step_shared": lambda: masked(some),
        "bounds": lambda: trie.child_bounds(beams.lo, beams.hi, level=level),
        "counts": lambda: allowed_in_children(every, trie, bounds, level=level),
        "add_scores_and_close": lambda: candidate_scores(beams.scores, says, counts),
        "add_scores_alone": lambda: beams.scores[..., None] + says,
        "best_columns": lambda: best_columns(scored, BEAMS),
        "topk_alone": lambda: scored.topk(BEAMS, dim=1),
        "follow": lambda: follow(bounds, parent, codes, scores),
        "weigh_by_mass": lambda: over_children(says, bounds, even),
        "whole": lambda: whole(None),
        "whole_with_mass": lambda: whole(even),
    }
    return {name: timed(work, rounds) for name, work in parts.items()}


def python_trie_step(table: SemanticIdTable, rounds: int) -> dict[str, float]:
    """Time transformers' processor on the same number of beams."""
    starts = torch.tensor([FIRST_CODE + 256 * level for level in range(3)])
    rows = (table.codes.long() + starts).tolist()
    processor = PrefixConstrainedLogitsProcessor(python_trie(rows), num_beams=BEAMS)
    generator = torch.Generator().manual_seed(1)
    picked = torch.randint(len(rows), (REQUESTS * BEAMS,), generator=generator).tolist()
    inputs = torch.tensor([[0, *rows[item][:2]] for item in picked])
    logits = torch.randn(len(inputs), FIRST_CODE + 768, generator=generator)
    return timed(lambda: processor(inputs, logits), rounds)


def draw_plot(result: dict, target: Path) -> None:
    """Draw the mask step's time over the size of the catalogue."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.6))
    lines = {
        "sidrec, 3 x 256": ("three_levels", lambda row: row["step"]["mask_step"]["best_ms"]),
        "sidrec, 4 x 256": ("four_levels", lambda row: row["step"]["mask_step"]["best_ms"]),
        "Python trie": (
            "three_levels",
            lambda row: row.get("python_trie", {}).get("best_ms"),
        ),
    }
    for label, (kind, value) in lines.items():
        points = [(row["items"], value(row)) for row in result[kind] if value(row) is not None]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="items", ylabel="mask step of 640 beams, ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure every catalogue and write the result and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--largest", type=int, default=10_000_000, help="build and memory; 0: none")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    three, four = [], []
    for num_items in [*arguments.items, *([arguments.largest] if arguments.largest else [])]:
        shared = num_items == arguments.largest
        table = zipf_table(num_items, (256,) * 3, shared=shared)
        trie, built = build(table, 1 if shared else 3)
        row: dict = {"items": num_items, "distinct_ids": int(trie.keys.unique().numel())}
        row |= {"build": built, "step": step_costs(trie, arguments.rounds)}
        if not shared:
            row["python_trie"] = python_trie_step(table, max(3, arguments.rounds // 20))
            own = zipf_table(num_items, (256,) * 4, shared=True)
            deep, deep_built = build(own, 3)
            steps = step_costs(deep, arguments.rounds)
            four.append({"items": num_items, "build": deep_built, "step": steps})
        three.append(row)
        print(num_items, built, row["step"]["mask_step"], row.get("python_trie"), flush=True)
    result = {
        "settings": {
            "requests": REQUESTS,
            "beams": BEAMS,
            "zipf": ZIPF,
            "rounds": arguments.rounds,
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "three_levels": three,
        "four_levels": four,
    }
    write_json(arguments.out, result)
    draw_plot(result, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
