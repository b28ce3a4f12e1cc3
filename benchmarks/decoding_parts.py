"""Where the time of a search goes in `decoding_grid.py`, and what the machine would allow."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from decoding_systems import SOURCE_TOKENS, Cell

from sidrec.generator.decoding import beam_search as engine
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.t5_decoder import T5Steps


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
    square = min(seconds_of(lambda: one @ one) for _ in range(10))
    copied = min(seconds_of(block.clone) for _ in range(5))
    speed, width = 2 * 1024**3 / square, 2 * 4 * len(block) / copied
    return {
        "gflop": 2 * products / 1e9,
        "moved_mb": moved / 1e6,
        "gflop_per_s_here": speed / 1e9,
        "gb_per_s_here": width / 1e9,
        "compute_ms": 2 * products / speed * 1000,
        "memory_ms": moved / width * 1000,
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
