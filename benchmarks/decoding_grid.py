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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from constraint_speed import forget_peak, peak_mib, zipf_table
from decoding_speed import END, FIRST_CODE, PAD, python_trie
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from sidrec.files import write_json
from sidrec.generator import beams as engine
from sidrec.generator.allowed import AllItemsBut
from sidrec.generator.beams import search_allowed
from sidrec.generator.decoder import T5Decoder, T5Steps
from sidrec.generator.diverse import diverse_search
from sidrec.generator.trie import SemanticIdTrie
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.types import SemanticIdTable

SOURCE_TOKENS, PAPER_BEAMS = 60, 60
PEER = "transformers_python_trie"
SHAPES: dict[str, dict[str, Any]] = {
    "tiger": {"d_model": 128, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 6},
    "flan-t5-base": {
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}
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


class Cell:
    """One catalogue and one model, with everything that the systems need."""

    def __init__(self, table: SemanticIdTable, shape: str, batch: int) -> None:
        torch.manual_seed(0)
        sizes = table.codebook_sizes
        starts = [FIRST_CODE + sum(sizes[:level]) for level in range(len(sizes))]
        self.table, self.sizes, self.batch = table, sizes, batch
        self.ids = [torch.arange(n) + start for n, start in zip(sizes, starts, strict=True)]
        config = T5Config(
            vocab_size=FIRST_CODE + sum(sizes), decoder_start_token_id=PAD, **SHAPES[shape]
        )
        self.model = T5ForConditionalGeneration(config).eval()
        self.halved = T5ForConditionalGeneration(config).eval().bfloat16()
        self.halved.load_state_dict(self.model.state_dict())
        self.trie = SemanticIdTrie.from_table(table, None)
        self.rows = (table.codes.long() + torch.tensor(starts)).tolist()
        self.source = torch.randn(batch, SOURCE_TOKENS, config.d_model)
        self.mask = torch.ones(batch, SOURCE_TOKENS, dtype=torch.bool)
        self.allowed = AllItemsBut(torch.zeros((batch, 0), dtype=torch.int32))
        self.even = torch.arange(len(table.codes) + 1).double().expand(batch, -1)

    def step(self, *, over: str = "level", bf16: bool = False) -> T5Steps:
        """Start a step of sidrec's decoder."""
        model = self.halved if bf16 else self.model
        decoder = T5Decoder(model, self.ids, normalise_over=over)  # type: ignore[arg-type]
        return decoder.start(self.source.to(model.dtype), self.mask)

    def search(self, step: Callable[..., Any], beams: int, *, weighed: bool = False) -> Any:  # noqa: ANN401
        """Run sidrec's beam search."""
        return search_allowed(
            step,
            self.trie,
            self.allowed,
            num_requests=self.batch,
            num_beams=beams,
            top_k=beams,
            mass_before=self.even if weighed else None,
        )

    def generate(self, beams: int, prefix_function: Any, *, bf16: bool = False) -> torch.Tensor:  # noqa: ANN401
        """Run transformers' beam search."""
        model = self.halved if bf16 else self.model
        return model.generate(
            encoder_outputs=BaseModelOutput(self.source.to(model.dtype)),
            attention_mask=self.mask.long(),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=len(self.sizes),
            length_penalty=0.0,
            prefix_allowed_tokens_fn=prefix_function,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=END if prefix_function else None,
        )


def cornac_beam(cell: Cell, beams: int) -> Callable[[], object] | None:
    """Return cornac's search over the batch, or None where cornac is missing."""
    try:
        from cornac.models.tiger.tiger import TIGERSeq2Seq
    except ImportError:
        return None
    model = TIGERSeq2Seq(cell.sizes).eval()
    children: list[dict[tuple[int, ...], list[int]]] = [{} for _ in cell.sizes]
    for row in cell.table.codes.tolist():
        for level, code in enumerate(row):
            children[level].setdefault(tuple(row[:level]), []).append(code)
    unique = [{key: sorted(set(codes)) for key, codes in of.items()} for of in children]
    mask = cell.mask[:1].float()
    state = {"row": 0}
    model.encode_history = lambda *_: cell.source[state["row"], None]

    def search() -> None:
        for row in range(cell.batch):
            state["row"] = row
            model.generate_beam(None, mask, beams, unique)

    return search


@contextmanager
def watched(spent: dict[str, float]) -> Iterator[None]:
    """Add up the time inside the engine's parts."""

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            result = function(*arguments, **named)
            spent[name] = spent.get(name, 0.0) + (time.perf_counter() - started) * 1000
            return result

        return timed

    parts = {
        "weigh": (engine, "over_children"),
        "bounds": (SemanticIdTrie, "child_bounds"),
        "counts": (engine, "allowed_in_children"),
        "score_and_close": (engine, "candidate_scores"),
        "choose": (engine, "best_columns"),
        "follow": (engine, "follow"),
        "expand": (engine, "expand"),
        "model": (T5Steps, "__call__"),
    }
    before = {name: getattr(*place) for name, place in parts.items()}
    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, watch(name, before[name]))
    try:
        yield
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, before[name])


def parts_of(cell: Cell, beams: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each part of a weighed search; the start is in none."""
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        spent: dict[str, float] = {}
        step = cell.step()
        with watched(spent):
            started = time.perf_counter()
            cell.search(step, beams, weighed=True)
            spent["whole"] = (time.perf_counter() - started) * 1000
        found.append(spent)
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def bound_of(cell: Cell, beams: int) -> dict[str, float]:
    """Count what a search must multiply and move, against what this machine reaches."""
    config = cell.model.config
    inner, depth = config.d_kv * config.num_heads, len(cell.sizes)
    wide = 3 if config.is_gated_act else 2
    by_row = config.d_model * (6 * inner + wide * config.d_ff)  # q, k, v, o and q, o again
    by_row += 2 * SOURCE_TOKENS * inner  # scores and mixing over the source
    rows = cell.batch * (1 + (depth - 1) * beams)
    layers = config.num_decoder_layers
    products = rows * (layers * by_row + config.d_model * cell.sizes[0])
    products += cell.batch * SOURCE_TOKENS * layers * 2 * config.d_model * inner  # once a request
    weights = layers * config.d_model * (8 * inner + wide * config.d_ff)
    cache = layers * cell.batch * (SOURCE_TOKENS + beams) * 2 * inner
    moved = depth * 4 * (weights + cache)
    one = torch.randn(1024, 1024)
    block = torch.randn(1 << 25)
    square = min(_seconds(lambda: one @ one) for _ in range(10))
    copied = min(_seconds(block.clone) for _ in range(5))
    speed, width = 2 * 1024**3 / square, 2 * 4 * len(block) / copied
    return {
        "gflop": 2 * products / 1e9,
        "moved_mb": moved / 1e6,
        "gflop_per_s_here": speed / 1e9,
        "gb_per_s_here": width / 1e9,
        "compute_ms": 2 * products / speed * 1000,
        "memory_ms": moved / width * 1000,
    }


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def own_systems(cell: Cell, beams: int) -> dict[str, Callable[[], object]]:
    """Return sidrec's ways to answer the cell's requests."""
    systems: dict[str, Callable[[], object]] = {
        "sidrec": lambda: cell.search(cell.step(), beams),
        "sidrec_bf16": lambda: cell.search(cell.step(bf16=True), beams),
        "sidrec_weighed": lambda: cell.search(cell.step(), beams, weighed=True),
    }
    if beams == PAPER_BEAMS:
        systems["sidrec_diverse"] = lambda: diverse_search(
            cell.step(),
            cell.trie,
            cell.allowed,
            num_requests=cell.batch,
            num_beams=beams,
            num_groups=beams // 2,
            diversity_penalty=0.25,
            top_k=beams,
        )
    return systems


def peer_systems(cell: Cell, beams: int) -> tuple[dict[str, Callable[[], object]], float]:
    """Return the others' ways, and the share of requests with the same lists as sidrec's."""
    function = python_trie(cell.rows)
    theirs = cell.generate(beams, function)[:, 1:].view(cell.batch, beams, -1).tolist()
    found = cell.search(cell.step(over="vocabulary"), beams).ranked.items.tolist()
    ours = [[cell.rows[item] for item in line] for line in found]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / cell.batch
    systems: dict[str, Callable[[], object]] = {PEER: lambda: cell.generate(beams, function)}
    if beams == 30:
        systems["transformers_unconstrained"] = lambda: cell.generate(beams, None)
    tiger = cell.model.config.num_layers == SHAPES["tiger"]["num_layers"]
    cornac = cornac_beam(cell, beams) if tiger and cell.batch == 1 else None
    return systems | ({"cornac_beam": cornac} if cornac else {}), same


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
            wall[name].append(_seconds(systems[name]))
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
