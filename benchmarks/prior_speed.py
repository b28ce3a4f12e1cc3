"""Processor seconds that the exact prior adds to decoding and to a training step.

    python benchmarks/prior_speed.py --out benchmarks/results/prior_speed.json

One random T5 of TIGER's size answers random histories of a random catalogue, once with the scorers
of recommendation (dense, next_item, popularity) and once without. next_item is what a corpus of
that size gets: a dense map, or a low-rank one above `max_dense_items`. The two take turns; the
result is the median of the rounds. Scorers, T5 and search are all inside the time.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from generator_inputs import ITEM_DIM, SIZES, TIGER

from sidrec.files import write_json
from sidrec.generator.model.batch import GeneratorBatch, batch_of_requests
from sidrec.generator.model.code_space import CodeSpace, CodeVocabulary
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.model.t5 import t5_from_config, train_tokenizer
from sidrec.generator.scorers.dense import DenseScorer
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.next_item import Linear, NextItemScorer
from sidrec.generator.scorers.prior_settings import NextItemSettings
from sidrec.generator.scorers.scorer import PopularityScorer
from sidrec.types import TASKS, Request, SemanticIdTable

NEXT_ITEM = NextItemSettings()


def model_of(num_items: int) -> GeneratorModel:
    """Return a generator with random weights, Semantic IDs, vectors and scorers."""
    torch.manual_seed(0)
    inputs = InputSettings(text_input="tokens")
    prompts = [inputs.search_prompt, inputs.recommendation_prompt]
    tokenizer = train_tokenizer(prompts, vocabulary_size=100)
    vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), SIZES)
    number = torch.randperm(SIZES[0] * SIZES[1] * SIZES[2])[:num_items]
    codes = torch.stack([number // 65_536, number // 256 % 256, number % 256], dim=1)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, ITEM_DIM), dim=1)
    popularity = torch.randint(1, 1000, (num_items,))
    if num_items <= NEXT_ITEM.max_dense_items:
        linear = Linear(torch.randn(num_items, num_items), None)
    else:
        factors = torch.randn(2, num_items, NEXT_ITEM.rank) / NEXT_ITEM.rank
        linear = Linear(factors[0], factors[1].T.contiguous())
    scorers = {
        "dense": DenseScorer(vectors, half_life_items=3.0),
        "next_item": NextItemScorer(linear, half_life_items=NEXT_ITEM.half_life_items),
        "popularity": PopularityScorer(popularity),
    }
    return GeneratorModel(
        t5_from_config(TIGER, vocabulary=vocabulary),
        inputs,
        tokenizer,
        dict.fromkeys(TASKS, CodeSpace(vocabulary, SemanticIdTable(codes, SIZES), popularity)),
        vectors,
        popularity,
        None,
        ItemPrior({"recommendation": scorers}, corpus_fingerprint=""),
    )


def batch_of(num_items: int, arguments: argparse.Namespace) -> GeneratorBatch:
    """Return random histories, each with a random answer that it does not hold."""
    drawn = torch.stack(
        [torch.randperm(num_items)[: arguments.history + 1] for _ in range(arguments.batch)]
    ).tolist()
    return batch_of_requests(
        [
            Request(str(row), "recommendation", "", tuple(h), (a,))
            for row, (a, *h) in enumerate(drawn)
        ],
        task="recommendation",
        request_rows=range(arguments.batch),
        max_history_items=arguments.history,
        exclude_history=True,
    )


def measure(arguments: argparse.Namespace, num_items: int) -> dict[str, object]:
    """Let both take turns; return processor seconds of decoding and of a training step."""
    model, batch = model_of(num_items), batch_of(num_items, arguments)
    prior = model.prior

    def decode() -> None:
        model.eval().answer(batch, num_beams=arguments.beams, top_k=arguments.beams)

    def train() -> None:
        model.train()(batch, label_smoothing=0.0).sum().backward()
        model.zero_grad()

    ways: dict[str, Callable[[], None]] = {"decode": decode, "train": train}
    taken: dict[str, list[float]] = {}
    for turn in range(arguments.rounds + 1):  # the first one warms up
        for own, with_prior in ((prior, "prior"), (None, "alone")):
            model.prior = own
            for name, run in ways.items():
                began = time.process_time()
                run()
                if turn:
                    taken.setdefault(f"{name}_{with_prior}", []).append(time.process_time() - began)
    median = {name: statistics.median(own) for name, own in taken.items()}
    return {
        "cpu_s": median,
        "ratio": {name: median[f"{name}_prior"] / median[f"{name}_alone"] for name in ways},
        "rounds_cpu_s": taken,
    }


def main() -> None:
    """Read the settings, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--beams", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--history", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    results = {}
    for num_items in arguments.items:
        results[f"{num_items} items"] = found = measure(arguments, num_items)
        print(num_items, found["cpu_s"], found["ratio"])
    write_json(
        arguments.out,
        {
            "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
            "model": TIGER
            | {"codebook_sizes": SIZES, "item_dim": ITEM_DIM, "rank": NEXT_ITEM.rank},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
