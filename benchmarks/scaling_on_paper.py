"""Bytes per step over the interconnect and expected efficiency, worked out and not measured.

Use: python benchmarks/scaling_on_paper.py     (prints the table of docs/scaling.md)

Assumptions, all written here: 40 % of an H100's 989 TFLOP/s in bf16 for encoders of BERT's size and
larger, 5 % for a T5 of TIGER's size (small matrices), 50 TFLOP/s for float32 k-means; NVLink moves
360 GB/s a GPU each way (80 % of 450), the network 40 GB/s a GPU (80 % of 400 Gbit/s); a collective
starts in 30 µs inside a node and in 60 µs between nodes. A GPU sends 2 (n - 1) / n of a buffer in
an all-reduce of n ranks, and receives n - 1 parts in an all-gather. Between nodes eight rings share
the buffer, one for each network card.
"""

import sys
from typing import NamedTuple

BF16_FLOPS, SMALL_FLOPS, FLOAT_FLOPS = 0.40 * 989e12, 0.05 * 989e12, 50e12
NVLINK, NETWORK, CARDS = 360e9, 40e9, 8
STARTS = {True: 30e-6, False: 60e-6}  # inside a node or not
GPUS = (8, 64)


class Step(NamedTuple):
    """One step of one GPU.

    Attributes:
        name: What it is.
        compute_s: Seconds of arithmetic.
        backward_share: Share of it behind which an all-reduce of gradients can hide.
        reduced: Bytes of each buffer that is summed over ranks while gradients are made.
        exposed: Bytes of each buffer that is summed where nothing can hide it.
        gathered: Bytes of one rank's part of each all-gather.
    """

    name: str
    compute_s: float
    backward_share: float
    reduced: tuple[float, ...]
    exposed: tuple[float, ...]
    gathered: tuple[float, ...]


def steps(num_gpus: int) -> list[Step]:
    """Return the steps that docs/scaling.md speaks of."""
    pairs, tokens, dim = 512, 32 + 128, 768
    encoder = Step(
        "bi-encoder, all-mpnet-base-v2, 512 pairs a GPU",
        6 * 85e6 * pairs * tokens / BF16_FLOPS,
        2 / 3,
        (110e6 * 4,),
        (num_gpus * pairs * dim * 4,),  # gradient of the gathered embeddings
        (pairs * dim * 4, pairs * 8),  # embeddings, item numbers
    )
    tiger = Step(
        "generator, TIGER's size, 128 examples a GPU",
        3 * 125e6 * 128 / SMALL_FLOPS + 10e-3,  # 10 ms of kernel launches
        2 / 3,
        (6e6 * 4,),
        (),
        (),
    )
    flan = Step(
        "generator, flan-t5-base, 128 examples a GPU",
        6 * 200e6 * 128 * 60 / BF16_FLOPS,
        2 / 3,
        (248e6 * 4,),
        (),
        (),
    )
    rows, wide = 10_000_000, 768
    kmeans = Step(
        "residual k-means, an iteration, 10 M x 768, 256 codes",
        2 * rows / num_gpus * 256 * wide / FLOAT_FLOPS,
        0.0,
        (),
        (256 * wide * 8, 256 * 8),
        (),
    )
    return [encoder, tiger, flan, kmeans]


def figures(step: Step, num_gpus: int) -> dict[str, float | str]:
    """Return bytes sent by a GPU, seconds, and efficiency without and with overlap."""
    inside = num_gpus <= CARDS
    ring = 2 * (num_gpus - 1) / num_gpus
    speed = NVLINK if inside else NETWORK * CARDS
    hidden = sum(ring * size / speed + STARTS[inside] for size in step.reduced)
    exposed = sum(ring * size / speed + STARTS[inside] for size in step.exposed)
    gather_speed = NVLINK if inside else NETWORK
    exposed += sum((num_gpus - 1) * size / gather_speed + STARTS[inside] for size in step.gathered)
    left_over = max(0.0, hidden - step.backward_share * step.compute_s)
    sent = ring * sum(step.reduced + step.exposed) + (num_gpus - 1) * sum(step.gathered)
    return {
        "step": step.name,
        "gpus": num_gpus,
        "compute_ms": 1e3 * step.compute_s,
        "sent_mb": sent / 1e6,
        "communication_ms": 1e3 * (hidden + exposed),
        "efficiency_without_overlap": step.compute_s / (step.compute_s + hidden + exposed),
        "efficiency_with_overlap": step.compute_s / (step.compute_s + left_over + exposed),
    }


def table() -> list[dict[str, float | str]]:
    """Return all figures."""
    return [figures(step, num_gpus) for num_gpus in GPUS for step in steps(num_gpus)]


if __name__ == "__main__":
    for row in table():
        cells = (
            f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()
        )
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
