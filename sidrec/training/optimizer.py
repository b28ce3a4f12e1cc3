"""How weights move: AdamW and its learning rate over the whole training, for Lightning modules."""

import math
from collections.abc import Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

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


def adamw_with_schedule(
    weights: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    total_steps: int | None,
    warmup_fraction: float,
    decay: Decay,
) -> dict[str, Any]:
    """Return what ``configure_optimizers`` returns: AdamW and its schedule by optimizer step.

    Args:
        weights: Those that train; norms and biases among them get no weight decay.
        learning_rate: Peak.
        weight_decay: Decoupled, per step, times the learning rate.
        total_steps: Optimizer steps of the whole training; None when it has no end by count.
        warmup_fraction: See ``learning_rate_factor``.
        decay: See ``learning_rate_factor``.
    """
    weights = [weight for weight in weights if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim >= 2]},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    def factor(step: int) -> float:  # a plain function: of other callables LambdaLR saves the dict
        return learning_rate_factor(
            step, total_steps=total_steps, warmup_fraction=warmup_fraction, decay=decay
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@runtime_checkable
class OptimizerSettings(Protocol):
    """What a module says of its optimizer: its hyperparameters, or the module itself.

    Attributes:
        learning_rate: Peak.
        weight_decay: Of weights that are neither norms nor biases.
        warmup_fraction: See ``learning_rate_factor``.
        decay: See ``learning_rate_factor``.
    """

    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    decay: Decay


def optimizer_of(
    module: Any,  # noqa: ANN401 (Lightning's)
    settings: OptimizerSettings,
    *,
    batches_per_epoch: int,
) -> dict[str, Any]:
    """Return what ``configure_optimizers`` of a module in a Trainer returns.

    Args:
        module: Whose weights train, over the whole training of its Trainer.
        settings: Of the optimizer and its schedule.
        batches_per_epoch: Of a whole epoch, on each rank.
    """
    return adamw_with_schedule(
        module.parameters(),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        total_steps=total_steps_of(module.trainer, batches_per_epoch=batches_per_epoch),
        warmup_fraction=settings.warmup_fraction,
        decay=settings.decay,
    )


def total_steps_of(trainer: Any, *, batches_per_epoch: int) -> int | None:  # noqa: ANN401
    """Return optimizer steps of the whole training, or None when it has no end by count.

    Args:
        trainer: Lightning's.
        batches_per_epoch: Of a whole epoch, on each rank.
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
