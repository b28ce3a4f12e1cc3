"""Residual k-means on a GPU: 10^6 x 768, 3 x 256 codes, against what the card could do.

Use: python benchmarks/quantizer_gpu.py --peak_tflops 60 --bandwidth_gb_s 3350
The two figures are the card's float32 (not TF32) multiply-add rate and its memory bandwidth, from
its data sheet (60 and 3350: H100 SXM). Without a GPU the script prints the bound and ends with 1.

The bound, for n rows of d numbers, k codes a level, L levels and i iterations a level (encoding and
each refinement are one more): distances take 2 n k d operations a pass; a pass must read the rows
once, 4 n d bytes. A pass takes at least the larger of the two times, whatever else it does.
Settings: configs/ids/default.yaml, but all rows and all iterations.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from shipped import quantizer_of

from sidrec.files import write_json

LEVELS, CODES, REFINEMENTS = 3, 256, 3


def bound_s(options: argparse.Namespace) -> float:
    """Return the least seconds that fit and encoding can take on the card."""
    passes = LEVELS * (options.iterations + REFINEMENTS + 1)
    operations = 2 * options.items * CODES * options.dim / (options.peak_tflops * 1e12)
    reading = 4 * options.items * options.dim / (options.bandwidth_gb_s * 1e9)
    return passes * max(operations, reading)


def seconds(vectors: torch.Tensor, options: argparse.Namespace) -> float:
    """Fit on all rows, encode, wait for the card."""
    quantizer = replace(
        quantizer_of("default"),
        num_iterations=options.iterations,
        tolerance=0.0,
        train_rows_per_code=None,
    )
    torch.cuda.synchronize()
    began = time.perf_counter()
    quantizer.fit(vectors).encode(vectors)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Measure, compare with the bound, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--peak_tflops", type=float, default=60.0)
    parser.add_argument("--bandwidth_gb_s", type=float, default=3350.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="benchmarks/results/quantizer_gpu.json")
    options = parser.parse_args()
    bound = bound_s(options)
    print(f"bound: {bound:.2f} s for {options.items:,} x {options.dim}", file=sys.stderr)
    if not torch.cuda.is_available():
        print("no GPU is visible: nothing was measured", file=sys.stderr)
        sys.exit(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (options.items, options.dim)
    vectors = torch.randn(shape, device="cuda", generator=generator)
    seconds(vectors[: options.items // 10], options)  # warms up
    taken = median(seconds(vectors, options) for _ in range(options.rounds))
    write_json(
        Path(options.output),
        {
            "command": f"python benchmarks/quantizer_gpu.py --items {options.items} "
            f"--dim {options.dim} --iterations {options.iterations}",
            "device": torch.cuda.get_device_name(),
            "unit": "seconds, median; fit on all rows and encoding",
            "taken_s": taken,
            "bound_s": bound,
            "over_bound": taken / bound,
        },
    )
    print(f"{taken:.2f} s, {taken / bound:.1f} x the bound")


if __name__ == "__main__":
    main()
