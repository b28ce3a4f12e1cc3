"""Seconds and memory that the prior adds to a search: mass of prefixes beside mass of positions.

    python benchmarks/prior_speed.py --out benchmarks/results/prior_speed.json

Both get the same random catalogue, requests and logits (a model that answers at once), so what is
timed is all that the prior and the search cost without T5; the two take turns, and the result is
the median of the rounds. That both give the same lists is checked first.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sidrec.generator.model.codebook_prior import CodebookPrior

from sidrec.files import read_json, write_json
from sidrec.generator.decoding.beam_search import Decoded, beam_search
from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.prefix_prior import WeighedSteps
from sidrec.types import SemanticIdTable

WAYS = ("positions", "prefixes")
DIM = 384


def make(num_items: int, sizes: list[int]) -> tuple[SemanticIdTrie, CodebookPrior]:
    """Draw Semantic IDs with codes of Zipf's law, and what their codes stand for."""
    columns = [
        torch.multinomial(torch.arange(1, n + 1).double() ** -0.8, num_items, replacement=True)
        for n in sizes
    ]
    table = SemanticIdTable(torch.stack(columns, dim=1), tuple(sizes))
    trie = SemanticIdTrie.from_table(table, None)
    means = [torch.randn(n, DIM) / DIM**0.5 * 0.6**level for level, n in enumerate(sizes)]
    prior = CodebookPrior(
        means, table.codes[trie.items], scale=20.0, max_history_items=8, half_life_items=3.0
    )
    return trie, prior


@torch.inference_mode()
def searches(arguments: argparse.Namespace, num_items: int) -> dict[str, Callable[[], Decoded]]:
    """Return one search a way, on the same requests."""
    torch.manual_seed(0)
    trie, prior = make(num_items, arguments.codebook_sizes)
    asked = torch.nn.functional.normalize(torch.randn(arguments.batch, DIM), dim=1)
    excluded = torch.zeros((arguments.batch, 0), dtype=torch.long)
    logits = [torch.randn(arguments.batch, 1, n) for n in arguments.codebook_sizes]

    def step(level: int, parent: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        del codes
        return logits[level].expand(-1, parent.shape[1], -1)

    limits = {"num_beams": arguments.beams, "top_k": arguments.beams, "excluded": excluded}

    def positions() -> Decoded:
        return beam_search(step, trie, **limits, mass_before=prior(asked, task="search"))

    def prefixes() -> Decoded:
        return beam_search(
            WeighedSteps(step, trie, prior.masses(asked, task="search")), trie, **limits
        )

    return {"positions": positions, "prefixes": prefixes}


@torch.inference_mode()
def measure(arguments: argparse.Namespace, num_items: int) -> dict[str, object]:
    """Check that both ways agree, then let them take turns."""
    ways = searches(arguments, num_items)
    one, other = (ways[name]().ranked for name in WAYS)
    apart = (one.scores - other.scores).abs().max().item()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name in WAYS:
            started = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "same_items_fraction": (one.items == other.items).float().mean().item(),
        "largest_score_difference": apart,
        "median_s": median,
        "ratio": median["positions"] / median["prefixes"],
        "seconds": times,
    }


def peak_mib(arguments: argparse.Namespace, num_items: int, name: str) -> float:
    """Run one way alone in a process of its own; return what it adds to the process's peak."""
    words = ["--alone", name, str(num_items), "--out", str(arguments.out)]
    for option in ("batch", "beams"):
        words += [f"--{option}", str(getattr(arguments, option))]
    words += ["--codebook_sizes", *map(str, arguments.codebook_sizes)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, check=True)
    return float(done.stdout)


@torch.inference_mode()
def alone(arguments: argparse.Namespace) -> float:
    """Return MiB that one search adds to the peak of this process."""
    search = searches(arguments, int(arguments.alone[1]))[arguments.alone[0]]
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status_kib("VmRSS")
    search()
    return (status_kib("VmHWM") - before) / 1024


def status_kib(name: str) -> int:
    """Return one figure of this process's memory, as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--codebook_sizes", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--beams", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(alone(arguments))
        return
    results = read_json(arguments.out) if arguments.out.exists() else {}
    for num_items in arguments.items:
        found = measure(arguments, num_items)
        found["peak_mib"] = {name: peak_mib(arguments, num_items, name) for name in WAYS}
        shape = "x".join(map(str, arguments.codebook_sizes))
        results[f"{num_items} items, {shape}, batch {arguments.batch}"] = found | {
            "settings": {k: v for k, v in vars(arguments).items() if k not in ("out", "alone")},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "load_average": os.getloadavg()[0],
            "torch": torch.__version__,
        }
        print(num_items, found["median_s"], found["peak_mib"], found["same_items_fraction"])
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
