"""Vectors stay in their file: anonymous memory grows with ids, titles and codes alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sidrec.semantic_ids.bundle.vector_reader import as_float_rows, read_vector_file, stacked_rows

DIM = 1536
MAKE = f"""
import sys, threading
from pathlib import Path
import torch
from sidrec.semantic_ids import spread
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.semantic_ids.quantizers.base import Quantizer
from sidrec.semantic_ids.bundle.vector_reader import read_vector_file
from tests.semantic_ids.made import random_quantizer

class Fixed(Quantizer):
    def settings(self):
        return {{"name": "rq_kmeans"}}
    def fit(self, vectors):
        return random_quantizer((32, 32, 128), dim={DIM})

def anonymous():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("RssAnon")) / 1024

def watch():
    while not done.wait(0.002):
        seen.append(anonymous())

def make(source, out):
    read = read_vector_file(source)
    build_semantic_ids(
        read.embeddings, quantizer=Fixed(), policy=ReassignLastLevel(), item_ids=read.item_ids,
        titles=read.titles, source={{}}, device=torch.device("cpu"),
    ).save(out)

spread._BATCH_CELLS = 1 << 18  # or the smaller catalogue would not fill one batch
source, warm_up = map(Path, sys.argv[1:])
make(warm_up, warm_up.parent / "warm")
seen, done = [anonymous()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
make(source, source.parent / "ids")
done.set()
thread.join()
print(max(seen) - seen[0])
"""


def growth_mib(folder, num_items):
    rng = np.random.default_rng(0)
    for name, rows in (("small", 500), ("v", num_items)):
        np.save(folder / f"{name}.npy", rng.standard_normal((rows, DIM), dtype=np.float32))
    command = [sys.executable, "-c", MAKE, str(folder / "v.npy"), str(folder / "small.npy")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout)


@pytest.mark.slow  # two processes
def test_memory_does_not_hold_the_vectors(tmp_path):
    small, large = (growth_mib(tmp_path, num_items) for num_items in (10_000, 40_000))
    vectors_mib = 30_000 * DIM * 4 / 2**20
    assert large - small < 0.5 * vectors_mib


def test_a_float32_file_is_mapped_not_copied(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((50, 4), dtype=np.float32))
    npy = read_vector_file(tmp_path / "v.npy").embeddings.vectors
    assert as_float_rows(npy).data_ptr() == npy.data_ptr()
    save_file({"embeddings": torch.ones(50, 4)}, tmp_path / "v.safetensors")
    mapped = read_vector_file(tmp_path / "v.safetensors").embeddings.vectors
    assert as_float_rows(mapped).data_ptr() == mapped.data_ptr()


def test_large_conversions_go_through_a_file(monkeypatch):
    monkeypatch.setattr("sidrec.semantic_ids.bundle.vector_reader._IN_MEMORY_BYTES", 100)
    vectors = torch.randn(5000, 3).to(torch.bfloat16)
    rows = as_float_rows(vectors)
    maps = Path("/proc/self/maps").read_text().splitlines()
    start = next(line for line in maps if line.startswith(f"{rows.data_ptr():x}-"))
    assert start.endswith("(deleted)")  # mapped from a file without a name
    assert torch.equal(rows, vectors.float())
    both = stacked_rows([rows, torch.ones(2, 3)], 5002, 3)
    assert torch.equal(both[:5000], rows)
    assert both[5000:].sum() == 6
