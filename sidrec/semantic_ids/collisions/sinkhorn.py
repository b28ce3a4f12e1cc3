"""Sinkhorn collision policy: collisions as a transport problem."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from sidrec.errors import ConfigError, DataError
from sidrec.plugins import find_class
from sidrec.semantic_ids.collisions.policies import (
    CodedItems,
    CollisionPolicy,
    ExtraLevel,
    KeepCollisions,
    ReassignLastLevel,
    Resolution,
)
from sidrec.semantic_ids.collisions.reassign import reassign, refuse_no_capacity

Array = npt.NDArray[Any]

_LEAST_SCALE = 1e-30  # float32: below it no row can take the code
_CONVERGED = 0.01  # a group is done when no scale changes by more than this fraction
_COMPACT_BELOW = 0.7  # fraction of unconverged groups below which the converged ones are dropped


@dataclass(frozen=True, slots=True)
class SinkhornLastLevel(CollisionPolicy):
    """Policy ``sinkhorn``: optimal transport from the colliding items of a prefix to its codes.

    Entropic transport gives each crowded code a dual variable. Each item then takes the code with
    room that has the least error plus dual, in rounds as in ``ReassignLastLevel``. Overfull
    prefixes also move items upwards as there. If the costs of a prefix do not fit into memory, the
    duals come from every n-th item and an n-th of the room. With a capacity of 1, IDs are unique
    even for items with identical embeddings.

    Attributes:
        epsilon: Entropy's weight, as a fraction of the mean excess error of a prefix's codes;
            ``> 0``. Smaller is nearer to the best assignment and needs more iterations.
        num_iterations: Most Sinkhorn iterations, ``>= 1``; a prefix stops when its duals converge.
        capacity: Items that may share one ID, ``>= 1``.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        LC-Rec, sec. III-B (https://arxiv.org/abs/2311.09049); inequality as in Benamou et al.
        2015 (https://arxiv.org/abs/1412.5154). Differs: a code holds at most ``capacity`` items
        where LC-Rec asks for equal shares, since prefixes have fewer items than codes; and the
        plan is rounded to an assignment, where LC-Rec takes each item's largest entry, which
        cannot separate identical items and leaves collisions.
    """

    epsilon: float = 0.05
    num_iterations: int = 30
    capacity: int = 1

    name = "sinkhorn"

    def __post_init__(self) -> None:
        refuse_no_capacity(self.capacity)
        if not self.epsilon > 0:
            raise ConfigError(f"epsilon is {self.epsilon}, expected more than 0, e.g. 0.05.")
        if self.num_iterations < 1:
            raise ConfigError(f"num_iterations is {self.num_iterations}, expected at least 1.")

    def assign(self, items: CodedItems) -> Resolution:
        """Return codes whose last level was assigned with duals where items collided."""

        def duals(errors: Array, group: Array, room: Array) -> Array:
            return transport_duals(
                errors, group, room, epsilon=self.epsilon, num_iterations=self.num_iterations
            )

        placed = reassign(*items, capacity=self.capacity, code_duals=duals)
        return Resolution(placed, items.quantizer.codebook_sizes)


def transport_duals(
    errors: Float[np.ndarray, "row code"],
    group: Int[np.ndarray, " row"],
    room: Float[np.ndarray, "group code"],
    *,
    epsilon: float,
    num_iterations: int,
) -> Float[np.ndarray, "group code"]:
    """Return the dual of each code, ``>= 0``, in the unit of the errors.

    The transport assigns all mass of every row; a code of a group takes at most its room. The dual
    of a code is 0 where there is enough room.

    Args:
        errors: Squared errors, ``>= 0``.
        group: Group of each row, dense from 0, ascending.
        room: Mass that each code of each group can take; a row has mass 1.
        epsilon: Weight of the entropy over the mean excess error of the group.
        num_iterations: Most Sinkhorn iterations.
    """
    sizes = np.bincount(group)
    starts = sizes.cumsum() - sizes
    has_room = room > 0
    errors = errors.astype(np.float32)
    least = np.where(has_room[group], errors, np.inf).min(axis=1, keepdims=True)
    excess = np.maximum(errors - least, 0)
    mean = np.add.reduceat(excess.mean(axis=1), starts) / sizes
    unit = (epsilon * np.where(mean > 0, mean, 1)).astype(np.float32)[:, None]  # [group, 1]
    kernel = np.exp(-excess / unit[group]) * has_room[group]
    limits = np.maximum(room, 0).astype(np.float32)
    scales = np.ones_like(limits)
    for size in np.unique(sizes):  # groups of one size are one batch of matrix products
        alike = np.flatnonzero(sizes == size)
        rows = starts[alike, None] + np.arange(size)
        scales[alike] = _scales(kernel[rows], limits[alike], num_iterations)
    duals: Array = (-unit * np.log(scales)).astype(np.float32)
    return duals


def _scales(kernel: Array, limits: Array, num_iterations: int) -> Array:
    """Return the factor of each code, [group, code], in (0, 1]; converged groups drop out.

    ``kernel`` is [group, row, code].
    """
    scales: Array = np.ones_like(limits)
    left, moving = np.arange(len(limits)), np.ones(len(limits), dtype=bool)
    for _ in range(num_iterations):
        before = scales[left]
        rows = 1 / np.maximum(kernel @ before[:, :, None], _LEAST_SCALE)
        load = (rows.transpose(0, 2, 1) @ kernel)[:, 0]
        now = np.clip(limits[left] / np.maximum(load, _LEAST_SCALE), _LEAST_SCALE, 1)
        scales[left[moving]] = now[moving]
        moving &= (np.abs(now - before) > _CONVERGED * before).any(axis=1)
        if not moving.any():
            break
        if moving.mean() < _COMPACT_BELOW:
            kernel, left = kernel[moving], left[moving]
            moving = np.ones(len(left), dtype=bool)
    return scales


_CLASSES: dict[str, type[CollisionPolicy]] = {
    one.name: one for one in (KeepCollisions, ExtraLevel, ReassignLastLevel, SinkhornLastLevel)
}


def load_policy(settings: dict[str, Any]) -> CollisionPolicy:
    """Build the policy whose ``settings()`` are given.

    Its name is one of sidrec, of an entry point ``sidrec.collision_policies``, or a class path.

    Raises:
        DataError: If no policy has that name, or it does not take these settings.
        ConfigError: If a plug-in cannot be imported.
    """
    name, values = settings.get("name", ""), {k: v for k, v in settings.items() if k != "name"}
    found = _CLASSES.get(name)
    if found is None:
        base: type[Any] = CollisionPolicy
        found = find_class("collision_policies", name, base, known=_CLASSES)
    try:
        return found(**values)
    except TypeError:
        raise DataError(
            f"The collision policy '{name}' does not take the stored settings {values}; "
            "make the bundle again with `sidrec ids`."
        ) from None
