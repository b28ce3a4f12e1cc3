"""Places for the names of a drawing, none over another or over a point."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_EDGES = 1e-9  # boxes that touch do not overlap


class Box(NamedTuple):
    """A rectangle, in pixels from the lower left corner of the drawing."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, *, width: float, height: float) -> "Box":
        """Return the box with its center there."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def center(self) -> tuple[float, float]:
        """The middle of the box."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share an area."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return min(across, up) > _EDGES

    def holds(self, other: "Box") -> bool:
        """Whether no part of the other one lies outside."""
        inside = self.left <= other.left and other.right <= self.right
        return inside and self.bottom <= other.bottom and other.top <= self.top


def first_free(candidates: Iterable[Box], taken: Sequence[Box], *, inside: Box) -> Box | None:
    """Return the first candidate that lies inside and over nothing; None if there is none.

    >>> square = Box(0, 0, 2, 2)
    >>> first_free([Box(1, 1, 3, 3), Box(2, 0, 4, 2)], [square], inside=Box(0, 0, 9, 9))
    Box(left=2, bottom=0, right=4, top=2)
    """
    for box in candidates:
        if inside.holds(box) and not any(box.overlaps(other) for other in taken):
            return box
    return None


def beside(x: float, y: float, *, width: float, height: float, gap: float) -> list[Box]:
    """Return boxes right, left, above and below a point, ``gap`` away from it."""
    across, up = gap + width / 2, gap + height / 2
    centers = [(x + across, y), (x - across, y), (x, y + up), (x, y - up)]
    return [Box.around(*center, width=width, height=height) for center in centers]


def rings(
    x: float,
    y: float,
    *,
    width: float,
    height: float,
    radii: Sequence[float],
    num_directions: int,
    first: float,
) -> list[Box]:
    """Return boxes on circles around a point, the nearest first.

    On each circle they begin in the direction ``first`` (radians from the right, anticlockwise)
    and turn away from it to both sides.
    """
    places = [0] + [side * n for n in range(1, num_directions // 2 + 1) for side in (1, -1)]
    turns = [first + 2 * math.pi * n / num_directions for n in places[:num_directions]]
    return [
        Box.around(
            x + radius * math.cos(turn), y + radius * math.sin(turn), width=width, height=height
        )
        for radius in radii
        for turn in turns
    ]
