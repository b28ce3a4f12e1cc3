"""Pareto front and hypervolume of two figures per system."""

import numpy as np
from jaxtyping import Bool, Float


def pareto_mask(points: Float[np.ndarray, "system objective"]) -> Bool[np.ndarray, " system"]:
    """Mark the systems that no other system dominates; more is better in every objective.

    A system dominates another if it is at least as good everywhere and better somewhere. Equal
    systems are on the front together. A system with a missing figure (NaN) is never on it.

    >>> pareto_mask(np.array([[1.0, 3.0], [2.0, 2.0], [1.5, 1.5]])).tolist()
    [True, True, False]
    """
    known = ~np.isnan(points).any(axis=1)
    filled = np.where(known[:, None], points, -np.inf)
    at_least = (filled[:, None] >= filled[None]).all(axis=2)  # [system, other]
    better = (filled[:, None] > filled[None]).any(axis=2)
    return np.asarray(known & ~(at_least & better).any(axis=0))


def hypervolume(points: Float[np.ndarray, "system 2"]) -> float:
    """Return the area between the origin and the front of two figures that are 0 or more.

    A larger area means better trade-offs. The origin is the reference because recall has no lower
    value. Points with NaN are ignored.

    >>> hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    6.0

    Source:
        Zitzler, Thiele 1999, https://doi.org/10.1109/4235.797969, with two objectives.
    """
    front = points[pareto_mask(points)]
    area, covered = 0.0, 0.0
    for across, up in front[np.lexsort((front[:, 1], -front[:, 0]))]:  # from the right
        area += across * max(0.0, up - covered)
        covered = max(covered, up)
    return float(area)


def contributions(points: Float[np.ndarray, "system 2"]) -> list[float]:
    """Return the loss of hypervolume without each system; 0 off the front."""
    whole = hypervolume(points)
    return [whole - hypervolume(np.delete(points, row, axis=0)) for row in range(len(points))]
