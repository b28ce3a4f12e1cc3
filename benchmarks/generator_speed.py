"""Training examples per second of sidrec's generator beside a plain transformers loop.

    python benchmarks/generator_speed.py --corpus DIR --out benchmarks/results/generator_speed.json

The peer is the usual loop: both tasks mixed in a batch, every example padded to the longest input
that can occur (the longest history), cross-entropy over the whole vocabulary, AdamW. Both train the
same T5 (TIGER's size, the same weights at the start) on the same examples of a real corpus: queries
as T5's tokens, histories as codes. The peer's tokens are made beforehand, sidrec's inside the time.
`sidrec_items` is the form that sidrec's own configurations use: an item of a history is one
position, not one for each code. They take turns; the result is the median of the rounds.

That both compute the same function is checked first: the logits of T5's own forward on the padded
inputs, normalized as sidrec does, must give sidrec's loss.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from generator_inputs import (
    SIZES,
    TIGER,
    PlainBatch,
    data_of,
    inputs_of,
    model_of,
    no_history,
    padded,
    same_function,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sidrec.files import write_json
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.training.numbered_batches import BatchNumber

LEARNING_RATE = 1e-3
PRECISIONS = ("float32", "bfloat16")


class Race:
    """Both systems on the same examples, ready to take steps."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data = data_of(arguments)
        self.model = model_of(self.data, arguments, history_input="codes")
        self.items = model_of(self.data, arguments, history_input="items")
        self.peer = deepcopy(self.model.t5)
        self.batches = [self.data.batches[BatchNumber(0, n)] for n in range(arguments.batches)]
        lengths = [len(row) for batch in self.batches for row in inputs_of(self.model, batch)]
        prompt = len(inputs_of(self.model, no_history(self.batches))[0])
        self.width = max(*lengths, prompt + arguments.history * len(SIZES))
        ids, mask, labels = padded(self.model, self.batches, width=self.width)
        order = torch.randperm(len(ids)).chunk(len(self.batches))  # mixes the tasks
        self.plain = [PlainBatch(ids[rows], mask[rows], labels[rows]) for rows in order]
        self.steps: dict[str, Callable[[int], Tensor]] = {
            "sidrec": partial(self.sidrec, self.model),
            "sidrec_items": partial(self.sidrec, self.items),
            "transformers": self.transformers,
        }
        models = {"sidrec": self.model, "sidrec_items": self.items, "transformers": self.peer}
        self.optimizers = {
            name: torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
            for name, model in models.items()
        }

    def sidrec(self, model: GeneratorModel, number: int) -> Tensor:
        """Make batch ``number`` and return its loss."""
        batch = self.data.batches[BatchNumber(0, number)]
        loss: Tensor = model(batch, label_smoothing=0.0).sum()
        return loss

    def transformers(self, number: int) -> Tensor:
        """Return the loss of a batch of as many of the same examples."""
        loss: Tensor = self.peer(**self.plain[number]._asdict()).loss
        return loss

    def seconds(self, name: str, precision: str) -> tuple[float, float]:
        """Train on all examples once; return seconds by the clock and by the processor."""
        for model in (self.model, self.items, self.peer):
            model.train()
        started, started_cpu = time.perf_counter(), time.process_time()
        for number in range(len(self.batches)):
            with autocast(precision):
                loss = self.steps[name](number)
            self.optimizers[name].zero_grad()
            loss.backward()
            self.optimizers[name].step()
        return time.perf_counter() - started, time.process_time() - started_cpu

    def counts(self) -> dict[str, float]:
        """Count positions, padding and forward operations per example: the ratio's reasons."""
        lengths = [[len(row) for row in inputs_of(self.model, one)] for one in self.batches]
        examples = sum(map(len, lengths))
        real = sum(map(sum, lengths)) / examples
        read = sum(max(own) * len(own) for own in lengths) / examples
        found = {
            "real_positions": real,
            "sidrec_positions": read,
            "transformers_positions": float(self.width),
            "sidrec_padding_fraction": 1 - real / read,
            "transformers_padding_fraction": 1 - real / self.width,
            "positions_ratio": self.width / read,
            "sidrec_output_logits": float(sum(SIZES)),
            "transformers_output_logits": float(
                len(SIZES) * self.model.space("search").vocabulary.num_tokens
            ),
        }
        for name, step in self.steps.items():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                for number in range(len(self.batches)):
                    step(number)
            found[f"{name}_forward_mflop"] = counter.get_total_flops() / examples / 1e6
        for name in ("sidrec", "sidrec_items"):
            own = found[f"{name}_forward_mflop"]
            found[f"{name}_flop_ratio"] = found["transformers_forward_mflop"] / own
        return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check that both compute the same, count what they compute, then let them take turns."""
    race = Race(arguments)
    difference = max(same_function(race.model, one, width=race.width) for one in race.batches[:2])
    counts = race.counts()
    times: dict[str, list[float]] = {}
    cpu_times: dict[str, list[float]] = {}
    load = []
    for turn in range(arguments.rounds + 1):  # the first one warms up
        load.append(os.getloadavg()[0])
        for precision, name in product(PRECISIONS, race.steps):
            taken, taken_cpu = race.seconds(name, precision)
            if turn:
                times.setdefault(f"{name}_{precision}", []).append(taken)
                cpu_times.setdefault(f"{name}_{precision}", []).append(taken_cpu)
    examples = arguments.batches * arguments.batch
    rate = {name: examples / statistics.median(taken) for name, taken in times.items()}
    cpu = {name: statistics.median(taken) for name, taken in cpu_times.items()}
    return {
        "settings": {
            key: value for key, value in vars(arguments).items() if key not in ("out", "corpus")
        },
        "corpus_fingerprint": race.data.corpus.fingerprint,
        "model": TIGER | {"vocabulary": race.model.space("search").vocabulary.num_tokens},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, cpu",
        "load_average": load,  # others on the machine lower both rates
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "largest_loss_difference": difference,
        "counts_per_example": counts,
        "examples_per_s": rate,
        "ratio": {
            f"{name}_{precision}": rate[f"{name}_{precision}"] / rate[f"transformers_{precision}"]
            for name, precision in product(("sidrec", "sidrec_items"), PRECISIONS)
        },
        "cpu_ratio": {  # of processor time, which other work on the machine disturbs less
            f"{name}_{precision}": cpu[f"transformers_{precision}"] / cpu[f"{name}_{precision}"]
            for name, precision in product(("sidrec", "sidrec_items"), PRECISIONS)
        },
        "seconds": times,
        "cpu_seconds": cpu_times,
    }


def autocast(precision: str) -> AbstractContextManager[object]:
    """Return bfloat16 autocast, or nothing for float32."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="made by `sidrec prepare`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=4, help="in a round, half of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--history", type=int, default=30, help="items, as configs/generator.yaml")
    parser.add_argument("--query_tokens", type=int, default=32)
    parser.add_argument("--pool_batches", type=int, default=20)
    arguments = parser.parse_args()
    result = measure(arguments)
    write_json(arguments.out, result)
    for name, rate in result["examples_per_s"].items():
        print(f"{name:24s} {rate:8.1f} examples/s")
    print(f"ratio {result['ratio']}\ncpu_ratio {result['cpu_ratio']}")
    for name, value in result["counts_per_example"].items():
        print(f"{name:30s} {value:10.2f}")


if __name__ == "__main__":
    main()
