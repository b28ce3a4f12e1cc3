import subprocess
import sys

import numpy as np
import pytest

ROWS, DIM = 800_000, 384  # 1.2 GB, more than is kept in memory

FIT = """
import sys, threading, time
import numpy as np, torch
from pathlib import Path
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

seen = []
def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.02)

torch.set_num_threads(1)
vectors = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
fitted = RqKMeans((8, 8), 2, 0.0, 1, "central", 64, False, 1).fit(vectors)
codes = fitted.encode(vectors)
assert len(codes.unique(dim=0)) > 32
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_file_larger_than_what_is_kept_is_fitted_without_a_copy(tmp_path):
    target = tmp_path / "vectors.npy"
    part = np.random.default_rng(0).standard_normal((8_000, DIM), dtype=np.float32)
    rows = np.lib.format.open_memmap(target, "w+", np.float32, (ROWS, DIM))
    for start in range(0, ROWS, len(part)):
        rows[start : start + len(part)] = part
    rows.flush()
    del rows
    command = [sys.executable, "-c", FIT, str(target)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(answer.stdout) < 250  # MiB; codes, distances and a few chunks
