"""Anonymous memory of `sidrec ids` on a file of vectors that is larger than it.

Use: python benchmarks/ids_memory.py --scratch FOLDER
Writes a .npy of random vectors around centers, runs the command in a process of its own and reads
/proc/PID/status all the while. Anonymous memory belongs to the process; file pages are the
memory-mapped vectors, which the kernel drops whenever it needs the room. Settings: those of
configs/ids/default.yaml.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sidrec.files import write_json

CONFIG = "configs/ids/default.yaml"
CHUNK = 10_000


def write_vectors(target: Path, num_items: int, dim: int) -> None:
    """Write float32 vectors, some thousand at a time."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((1000, dim), dtype=np.float32)
    rows = np.lib.format.open_memmap(target, "w+", np.float32, (num_items, dim))
    for start in range(0, num_items, CHUNK):
        part = rows[start : start + CHUNK]
        part[:] = centers[rng.integers(0, 1000, len(part))]
        part += rng.standard_normal(part.shape, dtype=np.float32)
    rows.flush()


def watched(command: list[str]) -> dict[str, float]:
    """Run a command; return its peaks in MiB and its processor seconds."""
    peaks = {"RssAnon": 0.0, "RssFile": 0.0}
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            rows = (line.split() for line in status.read_text().splitlines())
        except OSError:
            break
        for row in rows:
            name = row[0].rstrip(":") if row else ""
            if name in peaks:
                peaks[name] = max(peaks[name], int(row[1]) / 1024)
        time.sleep(0.05)
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} ended with code {process.returncode}")
    used = os.times()
    return {
        "anonymous_peak": round(peaks["RssAnon"], 1),
        "file_pages_peak": round(peaks["RssFile"], 1),
        "cpu_s": round(used.children_user + used.children_system, 1),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ids_memory.json"))
    options = parser.parse_args()
    source = options.scratch / f"{options.items}x{options.dim}.npy"
    write_vectors(source, options.items, options.dim)
    command = [sys.executable, "-m", "sidrec", "ids", "--embeddings", str(source)]
    command += ["--config", CONFIG, "--out", str(options.scratch / "ids")]
    found = watched(command)
    source.unlink()
    content = {
        "command": f"python benchmarks/ids_memory.py --items {options.items} --dim {options.dim}",
        "unit": "MiB",
        "config": CONFIG,
        "vectors": round(options.items * options.dim * 4 / 2**20, 1),
    }
    write_json(options.out, content | found)
    print(content | found)


if __name__ == "__main__":
    main()
