"""Time and memory of residual k-means from 10^4 to 10^7 items, vectors memory-mapped.

Use: python benchmarks/quantizer_cost.py --scratch FOLDER   (10^7 x 384 takes 15 GB there)
The settings of configs/ids/default.yaml on mixture-N sets, each size in a process of its own that
reads the .npy file through a memory map. Anonymous memory belongs to the process (sampled every
20 ms); file pages are the mapped vectors, which the kernel drops whenever it needs the room.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from quantizer_sets import DIM, load_set
from shipped import command_given, quantizer_of

from sidrec.files import write_json


def anonymous_mib() -> float:
    """Return the anonymous resident memory of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this benchmark reads /proc/self/status (Linux)")


class Peak(threading.Thread):
    """Watches anonymous memory until ``stop``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib, self.going = anonymous_mib(), True

    def run(self) -> None:
        """Sample."""
        while self.going:
            self.mib = max(self.mib, anonymous_mib())
            time.sleep(0.02)

    def stop(self) -> float:
        """Return the highest value seen, in MiB."""
        self.going = False
        self.join()
        return self.mib


def one_size(options: argparse.Namespace, num_items: int) -> dict:
    """Fit and encode one set; return seconds and memory."""
    array = np.load(options.scratch / f"mixture-{num_items}.npy", mmap_mode="c")
    vectors = torch.from_numpy(array)
    quantizer = replace(quantizer_of("default"), num_iterations=options.iterations)
    if options.all_rows:
        quantizer = replace(quantizer, train_rows_per_code=None)
    before, peak = anonymous_mib(), Peak()
    peak.start()
    clocks = [(time.process_time(), time.perf_counter())]
    fitted = quantizer.fit(vectors)
    clocks.append((time.process_time(), time.perf_counter()))
    codes = fitted.encode(vectors)
    clocks.append((time.process_time(), time.perf_counter()))
    num_train = num_items if options.all_rows else min(num_items, 256 * 256)
    return {
        "items": num_items,
        "training_rows": num_train,
        "iterations_at_most": options.iterations,
        "fit_cpu_s": clocks[1][0] - clocks[0][0],
        "fit_wall_s": clocks[1][1] - clocks[0][1],
        "encode_cpu_s": clocks[2][0] - clocks[1][0],
        "encode_wall_s": clocks[2][1] - clocks[1][1],
        "anonymous_mib_before": before,
        "anonymous_mib_peak": peak.stop(),
        "file_gib": array.nbytes / 2**30,
        "codes_used": [len(codes[:, level].unique()) for level in range(3)],
        "product_flops": 2 * 3 * 256 * DIM * (options.iterations * num_train + num_items),
    }


def plot(results: list[dict], target: Path) -> None:
    """Draw time and memory over the number of items."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for all_rows, style in ((False, "-o"), (True, "--s")):
        rows = [r for r in results if r["all_rows"] is all_rows]
        if not rows:
            continue
        items = [row["items"] for row in rows]
        name = "all rows" if all_rows else "256 rows a code"
        left.loglog(items, [r["fit_cpu_s"] for r in rows], style, label=f"fit, {name}")
        if not all_rows:
            left.loglog(items, [r["encode_cpu_s"] for r in rows], "-^", label="encode")
        right.semilogx(items, [r["anonymous_mib_peak"] for r in rows], style, label=name)
    left.set(xlabel="items", ylabel="processor seconds", title="3 x 256 codes, 384 dimensions")
    right.set(xlabel="items", ylabel="MiB", title="peak anonymous memory")
    right.axhline(2048, color="gray", linewidth=0.8)
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    """Measure each size in a fresh process; write the result file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--all_rows", action="store_true", help="train on all rows, not a sample")
    parser.add_argument("--output", type=Path, default="benchmarks/results/quantizer_cost.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(one_size(options, options.items[0])))
        return
    results = json.loads(options.output.read_text())["results"] if options.output.exists() else []
    for num_items in options.items:
        load_set(f"mixture-{num_items}", options.scratch, corpus=None, items=None)
        command = [sys.executable, __file__, "--one", "--scratch", str(options.scratch)]
        command += ["--items", str(num_items), "--iterations", str(options.iterations)]
        command += ["--all_rows"] if options.all_rows else []
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        results = [
            r for r in results if (r["all_rows"], r["items"]) != (options.all_rows, num_items)
        ]
        named = {"command": command_given(), "all_rows": options.all_rows}
        results = sorted([*results, named | json.loads(answer.stdout)], key=lambda r: r["items"])
        print(answer.stdout, file=sys.stderr)
        write_json(
            options.output,
            {
                "command": "see each result; one call may add to the file of another",
                "unit": "processor and wall seconds; MiB; product_flops: upper bound of the "
                "distances' multiply-adds x 2, all iterations run",
                "torch_threads": torch.get_num_threads(),
                "results": results,
            },
        )
        plot(results, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
