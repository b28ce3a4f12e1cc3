"""Memory of preparing, drawing and encoding: it grows with items and users, not with rows.

Use: python benchmarks/prepare_memory.py --scratch FOLDER --sizes 10000000x1000000
A size is INTERACTIONSxITEMS; there is a user for every hundred interactions of the largest. Each
step runs in a process of its own, which reads RssAnon of /proc/self/status every 20 ms: anonymous
memory belongs to the process, file pages are memory-mapped and the kernel drops them at need.
``encode`` embeds the catalogue with a BERT of one layer, width 64, and random weights: what is
measured is the way of the texts and the vectors, not the model.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sidrec.files import write_json

STEPS = ("make", "prepare", "temporal", "draw", "encode")
NUM_BATCHES, BATCH_SIZE = 200, 512


def make(folder: Path, interactions: int, items: int, users: int) -> None:
    """Write made-up interactions in shards, and items as one table."""
    from sidrec.corpus.sources.synthetic import SyntheticSettings, make_synthetic

    size = SyntheticSettings(
        num_items=items,
        num_users=users,
        num_interactions=interactions,
        num_topics=200,
        zipf_exponent=0.8,
        queries_per_item=0,
        seed=0,
    )
    raw, _ = make_synthetic(size, folder / "interactions")
    raw.items.write_parquet(folder / "items.parquet")


def prepare(folder: Path, *options: str) -> None:
    """Run ``sidrec prepare table`` on the shards."""
    from sidrec.cli.preparing.prepare import main

    tables = ["--items", f"{folder}/items.parquet", "--interactions", f"{folder}/interactions/*"]
    tables[-1] += ".parquet"
    main(["table", *tables, "--out", str(folder / "corpus"), *options])


def draw(folder: Path) -> None:
    """Draw item-item pairs from all over the corpus, as a training step does."""
    import numpy as np

    from sidrec.corpus.store import Corpus
    from sidrec.pairs.item_item import item_item_pairs
    from sidrec.training.counter_rng import key_of, permute

    interactions = Corpus.load(folder / "corpus").train_interactions()
    pairs = item_item_pairs(interactions, window=5, cap=100, weighting="uniform")
    for batch in range(NUM_BATCHES):
        places = np.arange(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE) % len(pairs)
        rows = permute(places, size=len(pairs), key=key_of(0, batch))
        pairs.draw(rows, seed=0, epoch=0)


def encode(folder: Path, in_memory_mib: int) -> None:
    """Embed every item with a tiny encoder, as a stage that makes Semantic IDs does."""
    from sidrec.corpus.store import Corpus
    from sidrec.encoder import encode as catalogue
    from sidrec.encoder.encode import encode_catalogue
    from sidrec.encoder.tower import TextTower

    corpus = Corpus.load(folder / "corpus")
    make_encoder(folder / "encoder", list(corpus.item_text_column()[:10_000]))
    tower = TextTower(str(folder / "encoder"), revision=None, dropout=None, length_groups=1)
    catalogue._IN_MEMORY_BYTES = in_memory_mib << 20
    encode_catalogue(tower, corpus, max_tokens=32, batch_size=1_024)


def make_encoder(folder: Path, texts: list[str]) -> None:
    """Write a tiny BERT with the words of some texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    words = Tokenizer(models.WordLevel(unk_token=names["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(names.values())
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=30_000, special_tokens=special)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    BertModel(config).save_pretrained(folder)


def step(
    name: str, folder: Path, interactions: int, items: int, users: int, in_memory_mib: int
) -> None:
    """Run one step and print its time and its largest anonymous memory."""
    work: dict[str, Callable[[], None]] = {
        "make": lambda: make(folder, interactions, items, users),
        "prepare": lambda: prepare(folder),
        "temporal": lambda: prepare(folder, "--split", "temporal"),
        "draw": lambda: draw(folder),
        "encode": lambda: encode(folder, in_memory_mib),
    }
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall = time.perf_counter()
    work[name]()
    stop.set()
    figures = {
        "peak_anonymous_mib": round(max(peak[0], anonymous_mib())),
        "cpu_s": round(time.process_time(), 1),
        "wall_s": round(time.perf_counter() - wall, 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def anonymous_mib() -> float:
    """Return the anonymous resident memory of this process."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith("RssAnon"))


def main() -> None:
    """Run the steps of each size and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["1000000x1000000", "10000000x1000000"])
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/prepare_memory.json")
    )
    parser.add_argument(
        "--vectors_in_memory_mib", type=int, default=2_048, help="more of them go to a file"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [(int(size.split("x")[0]), int(size.split("x")[1])) for size in options.sizes]
    num_users = max(interactions for interactions, _ in sizes) // 100
    if options.step:
        step(options.step, options.scratch, *sizes[0], num_users, options.vectors_in_memory_mib)
        return
    stored = json.loads(options.output.read_text())["results"] if options.output.exists() else {}
    for interactions, items in sizes:
        folder = options.scratch / f"prepare-{interactions}x{items}x{num_users}"
        if "make" in options.steps:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        found = stored.setdefault(f"{interactions:,} x {items:,}, {num_users:,} users", {})
        for name in options.steps:
            command = [sys.executable, __file__, "--scratch", str(folder), "--step", name]
            command += ["--sizes", f"{interactions}x{items}", f"{100 * num_users}x1"]
            command += ["--vectors_in_memory_mib", str(options.vectors_in_memory_mib)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(answer.stdout.splitlines()[-1])
            print(interactions, items, name, found[name], flush=True)
        corpus = folder / "corpus"
        if corpus.exists():
            kinds = {
                "parquet_mib": corpus.glob("*.parquet"),
                "mapped_mib": corpus.rglob(".cache/*/*"),
            }
            found |= {
                kind: round(sum(file.stat().st_size for file in files) / 2**20)
                for kind, files in kinds.items()
            }
        wording = "python benchmarks/prepare_memory.py --sizes INTERACTIONSxITEMS"
        write_json(options.output, {"command": wording, "results": stored})


if __name__ == "__main__":
    main()
