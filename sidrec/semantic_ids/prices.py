"""Prices of codes: each row takes the code that is near and cheap, so that none is overfull."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.rows import CHUNK_ROWS

_ROUNDS = 1000


class _TwoBest(NamedTuple):
    costs: Tensor  # [row, 2] squared distance plus price, less the row's square
    codes: Tensor  # [row, 2]


def cheapest(
    rows: Float[Tensor, "row dim"],
    centroids: Float[Tensor, "code dim"],
    prices: Float[Tensor, " code"],
) -> Int[Tensor, " row"]:
    """Return the code with the least squared distance plus price; ties: the lowest code."""
    return _costs(rows, centroids, prices).argmin(dim=1)


def capacity_prices(
    rows: Float[Tensor, "row dim"],
    centroids: Float[Tensor, "code dim"],
    *,
    capacity: int,
    step: float,
) -> Float[Tensor, " code"]:
    """Return prices at which no code is chosen by more than ``capacity`` rows.

    An auction, all codes at once: a code that too many rows choose raises its price until only
    ``capacity`` of them still prefer it to their next choice, the others go there, and so on.
    Prices only rise. Equal rows go together, so where more than ``capacity`` rows are equal, or
    after 1,000 rounds, codes stay overfull.

    Args:
        rows: What is to be spread.
        centroids: float32.
        capacity: Rows that a code may hold; ``capacity * code >= row``.
        step: Least rise of a price, as a fraction of the mean squared distance of a row to its
            nearest centroid, ``> 0``: so much is a row's choice worse than its best at these
            prices, at most; smaller is slower.

    Source:
        Bertsekas 1988, auction with ε-complementary slackness
        (https://doi.org/10.1007/BF02186476), with capacities; a code's rows are a cell of a
        power diagram (Aurenhammer et al. 1998, https://doi.org/10.1007/PL00009187).
    """
    if capacity * len(centroids) < len(rows):
        raise ValueError(f"{len(centroids)} codes of {capacity} rows cannot hold {len(rows)} rows")
    prices = torch.zeros(len(centroids), device=centroids.device)
    best = _two_best(rows, centroids, prices)
    squares = rows.square().sum(dim=1)
    rise = step * max((best.costs[:, 0] + squares).mean().item(), 1e-12)
    for _ in range(_ROUNDS):
        overfull = torch.bincount(best.codes[:, 0], minlength=len(prices)) > capacity
        if not overfull.any():
            break
        prices = torch.where(
            overfull, prices + _first_out(best, capacity, len(prices)) + rise, prices
        )
        stale = overfull[best.codes].any(dim=1).nonzero().flatten()  # other prices did not move
        renewed = _two_best(rows[stale], centroids, prices)
        best.costs[stale], best.codes[stale] = renewed
    return prices


def _first_out(best: _TwoBest, capacity: int, num_codes: int) -> Tensor:
    """Return per code how much more it may cost before its rows, less ``capacity``, leave."""
    margins, codes = best.costs[:, 1] - best.costs[:, 0], best.codes[:, 0]
    order = margins.argsort(descending=True, stable=True)
    order = order[codes[order].argsort(stable=True)]  # by code, the widest margins first
    counts = torch.bincount(codes, minlength=num_codes)
    place = counts.cumsum(dim=0) - counts + capacity
    return margins[order[place.clamp(max=len(order) - 1)]]


def _two_best(rows: Tensor, centroids: Tensor, prices: Tensor) -> _TwoBest:
    """Return each row's least and second least cost and their codes."""
    costs, codes = [], []
    for start in range(0, len(rows), CHUNK_ROWS):
        every = _costs(rows[start : start + CHUNK_ROWS], centroids, prices)
        first = every.min(dim=1)
        second = every.scatter(1, first.indices.unsqueeze(1), torch.inf).min(dim=1)
        costs.append(torch.stack([first.values, second.values], dim=1))
        codes.append(torch.stack([first.indices, second.indices], dim=1))
    return _TwoBest(torch.cat(costs), torch.cat(codes))


def _costs(rows: Tensor, centroids: Tensor, prices: Tensor) -> Tensor:
    return torch.addmm(centroids.square().sum(dim=1) + prices, rows, centroids.T, alpha=-2)
