"""AdamW and its learning-rate schedule over the whole training, for Lightning modules."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sidrec.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Settings,
)

Decay = Literal["linear", "cosine", "inverse_sqrt", "constant"]


def learning_rate_factor(
    step: int, *, total_steps: int | None, warmup_fraction: float, decay: Decay
) -> float:
    """Return the learning-rate factor of an optimizer step.

    Args:
        step: Number of steps done, from 0.
        total_steps: Steps of the whole training; None for a training without a step limit, which
            has no warm-up and no decay.
        warmup_fraction: Share of ``total_steps`` over which the factor rises linearly to 1.
        decay: From 1 after the warm-up down to 0 at the end (``linear``, ``cosine``), in proportion
            to 1 / sqrt(step) (``inverse_sqrt``), or ``constant``.

    >>> [learning_rate_factor(s, total_steps=10, warmup_fraction=0.2, decay="linear") for s in
    ...  (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if total_steps is None:
        return 1.0
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "inverse_sqrt":
        reached = max(1, warmup_steps)
        return math.sqrt(reached / max(reached, step))
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if decay == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if decay == "cosine" else 1.0


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """Settings of AdamW, its schedule, and the bad losses that it may skip.

    The defaults are the bi-encoder's. The other modules state their own in their signatures. A
    group from Python code replaces all of them; keys of YAML and flags replace only what they name.

    Attributes:
        learning_rate: Peak learning rate, ``> 0``.
        weight_decay: Decoupled weight decay of matrices, ``>= 0``; biases and norms have none.
        warmup_fraction: Share of all steps over which the rate rises from 0, in [0, 1).
        decay: Schedule after the warm-up: ``linear``, ``cosine``, ``inverse_sqrt`` or
            ``constant``.
        skip_bad_losses: Batches with a NaN or infinite loss that a run may skip; 0 ends the run at
            the first.
    """

    learning_rate: PositiveFloat = 2e-5
    weight_decay: NonNegativeFloat = 0.01
    warmup_fraction: Probability = 0.1
    decay: Decay = "linear"
    skip_bad_losses: NonNegativeInt = 0


def configure_adamw(
    weights: Iterable[nn.Parameter],
    settings: OptimizerSettings,
    *,
    total_steps: int | None,
    groups: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return AdamW and its schedule per optimizer step, as ``configure_optimizers`` returns them.

    Args:
        weights: Weights of the module; frozen ones are left out.
        settings: Settings of optimizer and schedule.
        total_steps: Optimizer steps of the whole training; None without a step limit.
        groups: Weights with a learning rate or decay of their own, as AdamW takes them.
    """
    apart = {id(weight) for group in groups for weight in group["params"]}
    weights = [one for one in weights if one.requires_grad and id(one) not in apart]
    groups = [
        {"params": [weight for weight in weights if _ndim(weight) >= 2]},
        {"params": [weight for weight in weights if _ndim(weight) < 2], "weight_decay": 0.0},
        *groups,
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def factor(step: int) -> float:  # a plain function: LambdaLR saves the dict of other callables
        return learning_rate_factor(
            step,
            total_steps=total_steps,
            warmup_fraction=settings.warmup_fraction,
            decay=settings.decay,
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _ndim(weight: nn.Parameter) -> int:
    """Return the dimensions of a weight, sharded or not (``ShardedStrategy``)."""
    return int(getattr(weight, "full_ndim", weight.ndim))


def total_steps_of(trainer: Any, *, batches_per_epoch: int) -> int | None:  # noqa: ANN401
    """Return the optimizer steps of the whole training; None without a step limit.

    Args:
        trainer: Lightning's Trainer.
        batches_per_epoch: Batches of a whole epoch, on each rank.
    """
    ends = []
    if trainer.max_steps > 0:
        ends.append(int(trainer.max_steps))
    if trainer.max_epochs and trainer.max_epochs > 0:
        batches, limit = batches_per_epoch, trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        ends.append(int(steps * trainer.max_epochs))
    return min(ends, default=None)
