"""Dual variables that keep codes within a capacity: fitted to rows, used to assign them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DEMAND_ROUNDS = 400
_AUCTION_ROUNDS = 600


class _TwoBest(NamedTuple):
    costs: Tensor  # [row, 2] squared distance plus dual, less the row's square
    codes: Tensor  # [row, 2]


def nearest_with_duals(
    rows: Float[Tensor, "row dim"],
    centroids: Float[Tensor, "code dim"],
    duals: Float[Tensor, " code"],
) -> Int[Tensor, " row"]:
    """Return the code with the least squared distance plus dual; ties: the lowest code."""
    squares = centroids.square().sum(dim=1) + duals
    return torch.addmm(squares, rows, centroids.T, alpha=-2).argmin(dim=1)


def fit_capacity_duals(
    rows: Float[Tensor, "row dim"],
    centroids: Float[Tensor, "code dim"],
    *,
    capacity: int,
    step: float,
) -> Float[Tensor, " code"]:
    """Return duals at which no code is chosen by more than ``capacity`` rows.

    First a subgradient ascent moves all duals with shrinking steps. If codes are still overfull,
    an auction raises the dual of each until only ``capacity`` rows prefer it to their next choice.
    Both end as soon as no code is overfull. Some codes stay overfull if more than ``capacity``
    rows are equal, since equal rows get the same code, or if clusters are too far apart for a
    thousand rounds.

    Args:
        rows: Rows to assign.
        centroids: float32.
        capacity: Rows that a code may hold; ``capacity * code >= row``.
        step: Last and least change of a dual, as a fraction of the mean squared distance of a
            row to its nearest centroid, ``> 0``; smaller is slower, and errs less.

    Source:
        Subgradient ascent on the duals of a transport problem, and Bertsekas 1988, auction with
        ε-complementary slackness (https://doi.org/10.1007/BF02186476), with capacities; a code's
        rows are a cell of a power diagram (Aurenhammer et al. 1998,
        https://doi.org/10.1007/PL00009187).
    """
    if capacity * len(centroids) < len(rows):
        raise ValueError(f"{len(centroids)} codes of {capacity} rows cannot hold {len(rows)} rows")
    products = rows @ centroids.T
    costs = centroids.square().sum(dim=1) - 2 * products  # [row, code], less the row's square
    error = (costs.amin(dim=1) + rows.square().sum(dim=1)).mean().clamp(min=1e-12).item()
    duals, found = _follow_demand(costs, capacity, first=error, last=step * error)
    return duals if found else _auction(costs, duals, capacity, rise=step * error)


def _follow_demand(
    costs: Tensor, capacity: int, *, first: float, last: float
) -> tuple[Tensor, bool]:
    """Return the best duals of the subgradient ascent, and whether no code is overfull."""
    duals = costs.new_zeros(costs.shape[1])
    best, fullest = duals, len(costs) + 1
    for turn in range(_DEMAND_ROUNDS):
        counts = torch.bincount((costs + duals).argmin(dim=1), minlength=len(duals))
        if int(counts.max()) < fullest:
            best, fullest = duals, int(counts.max())
        if fullest <= capacity:
            return best, True
        change = first * (last / first) ** (turn / _DEMAND_ROUNDS)
        excess = ((counts - capacity) / capacity).clamp(max=1)
        duals = (duals + change * excess).clamp(min=0)
    return best, False


def _auction(costs: Tensor, duals: Tensor, capacity: int, *, rise: float) -> Tensor:
    """Raise duals of overfull codes until none is."""
    best = _two_best(costs, duals)
    for _ in range(_AUCTION_ROUNDS):
        overfull = torch.bincount(best.codes[:, 0], minlength=len(duals)) > capacity
        if not overfull.any():
            break
        duals = torch.where(overfull, duals + _first_out(best, capacity, len(duals)) + rise, duals)
        stale = overfull[best.codes].any(dim=1).nonzero().flatten()  # other duals did not move
        best.costs[stale], best.codes[stale] = _two_best(costs[stale], duals)
    return duals


def _first_out(best: _TwoBest, capacity: int, num_codes: int) -> Tensor:
    """Return per code how much more it may cost before its rows, less ``capacity``, leave."""
    margins, codes = best.costs[:, 1] - best.costs[:, 0], best.codes[:, 0]
    order = margins.argsort(descending=True, stable=True)
    order = order[codes[order].argsort(stable=True)]  # by code, the widest margins first
    counts = torch.bincount(codes, minlength=num_codes)
    place = counts.cumsum(dim=0) - counts + capacity
    return margins[order[place.clamp(max=len(order) - 1)]]


def _two_best(costs: Tensor, duals: Tensor) -> _TwoBest:
    """Return each row's least and second least cost and their codes."""
    every = costs + duals
    first = every.min(dim=1)
    second = every.scatter(1, first.indices.unsqueeze(1), torch.inf).min(dim=1)
    return _TwoBest(
        torch.stack([first.values, second.values], dim=1),
        torch.stack([first.indices, second.indices], dim=1),
    )
