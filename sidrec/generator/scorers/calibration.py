"""Maximum-likelihood fit of the scalars that weight scorers and T5."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from sidrec.distributed import gather_objects

Scalars = Float[Tensor, " scalar"]


def fit_scalars(
    losses: Mapping[int, Callable[[Scalars], Float[Tensor, ""]]], start: Scalars, *, unit: Scalars
) -> tuple[Scalars, float]:
    """Return the non-negative scalars with the least loss, and that loss.

    Runs L-BFGS-B in units of ``unit``, so that steps suit scalars of different size. Every rank
    calls this with its own parts and gets the same result: parts are summed in the order of their
    numbers.

    Args:
        losses: Loss of each part of the data as a function of the scalars, by number of the part.
        start: Initial scalars; the result has no higher loss.
        unit: Expected size of each scalar, ``> 0``.
    """
    unit = unit.double()

    def total(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        own = [(number, *_with_gradient(losses[number], scaled, unit)) for number in losses]
        parts = sorted((part for rank in gather_objects(own) for part in rank), key=lambda p: p[0])
        return sum(p[1] for p in parts), np.sum([p[2] for p in parts], axis=0)

    with torch.inference_mode(mode=False), torch.enable_grad():
        first = (start.double() / unit).numpy()
        found = minimize(
            total, first, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(unit)
        )
    return torch.from_numpy(found.x) * unit, float(found.fun)


def flat_loss(
    weights: Float[Tensor, " scorer"],
    scores: Float[Tensor, "scorer request item"],
    is_allowed: Bool[Tensor, "request item"],
    target: Int[Tensor, " request"],
) -> Float[Tensor, ""]:
    """Return the summed negative log-likelihood of the targets under weighted scores, in nats.

    Args:
        weights: Weight of each scorer.
        scores: Exact item scores.
        is_allowed: True for allowed items, including the target.
        target: Column of the target item.
    """
    total = torch.tensordot(weights.to(scores), scores, dims=1)
    total = total.masked_fill(~is_allowed, float("-inf"))
    picked: Tensor = total.log_softmax(dim=1).gather(1, target[:, None])
    return -picked.double().sum()


def _with_gradient(
    loss: Callable[[Scalars], Tensor], scaled: Sequence[float] | np.ndarray, unit: Scalars
) -> tuple[float, np.ndarray]:
    at = torch.tensor(scaled, dtype=torch.float64, requires_grad=True)
    value = loss(at * unit)
    (gradient,) = torch.autograd.grad(value, at)
    return float(value.detach()), gradient.numpy()
