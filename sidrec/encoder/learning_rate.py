"""How the learning rate moves over training."""

import math
from typing import Literal

Decay = Literal["linear", "cosine", "constant"]


def learning_rate_factor(
    step: int, *, total_steps: int | None, warmup_fraction: float, decay: Decay
) -> float:
    """Return what the learning rate is multiplied with at an optimizer step.

    Args:
        step: Steps done, from 0.
        total_steps: Steps of the whole training; None when nobody knows: then no warm-up and no
            decay.
        warmup_fraction: Share of ``total_steps`` over which the factor rises linearly to 1.
        decay: From 1 after the warm-up down to 0 at the end, or ``constant``.

    >>> [learning_rate_factor(s, total_steps=10, warmup_fraction=0.2, decay="linear") for s in
    ...  (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if total_steps is None:
        return 1.0
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if decay == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if decay == "cosine" else 1.0
