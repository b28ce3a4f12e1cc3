"""Names in a drawing: beside their points where there is room, otherwise numbers and a legend."""

from collections.abc import Sequence
from functools import partial
from math import atan2, dist
from statistics import fmean
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sidrec.comparison.report.free_places import Box, beside, first_free, rings

_GRAY = "#57606a"
_FONT_SIZE = 8.0
_POINT = 6.0  # pixels that a point covers
_GAP = 3.0  # pixels from a point's center to the margin of its name
_NAME_MARGIN, _NUMBER_MARGIN = 5.0, 1.0  # pixels: room that a name needs to be seen as its point's
_RADII = (13.0, 18.0, 24.0, 31.0, 39.0, 48.0, 58.0, 70.0, 85.0, 105.0)  # pixels to its number
_FAR = 30.0
_DIRECTIONS = 16
_ALONG = [step / 50 for step in range(1, 48)]  # of the axes: where the name of a line may begin
_LEGEND_GAP = 0.015  # of the figure, from the axes
_LEGEND_LINES = 34  # that fit at full size


class Point(NamedTuple):
    """A point to be named.

    Attributes:
        name: What is written.
        x: On the axes.
        y: On the axes.
        color: In the legend.
        marker: In the legend.
        goes_first: Whether it is named before the others.
    """

    name: str
    x: float
    y: float
    color: str
    marker: str
    goes_first: bool


class Line(NamedTuple):
    """A line across the axes to be named.

    Attributes:
        name: What is written.
        crosses: The axis that it crosses.
        at: Where.
    """

    name: str
    crosses: Literal["x", "y"]
    at: float


def write_names(
    axes: Axes,
    points: Sequence[Point],
    lines: Sequence[Line],
    *,
    beside_legend: tuple[float, float, float, float],
) -> None:
    """Write names, none over another or over a point; numbers where points crowd.

    Args:
        axes: Already drawn, its limits and its place in the figure settled.
        points: In the order of their numbers.
        lines: In the order in which their names take room.
        beside_legend: Left, bottom, width and height that the axes get if there is a legend.
    """
    names = _free_names(axes, points)
    if len(names) < len(points):
        axes.set_position(beside_legend)
        names = _free_names(axes, points)
    for point, box in names.items():
        _write(axes, point.name, box)
    taken = [*_covered(axes, points), *names.values()]
    taken += _write_numbers(axes, points, [one for one in points if one not in names], taken)
    for line in lines:
        places = _places_along(axes, line)
        box = first_free(places, taken, inside=_inside(axes)) or places[0]
        taken.append(box)
        _write(axes, line.name, box, color=_GRAY)


def _free_names(axes: Axes, points: Sequence[Point]) -> dict[Point, Box]:
    """Return the points that have room for their names beside them, and the room."""
    covered, names = _covered(axes, points), dict[Point, Box]()
    for point in sorted(points, key=lambda one: (not one.goes_first, -one.y)):
        width, height = _size(axes, point.name, margin=_NAME_MARGIN)
        places = beside(*_pixels(axes, point), width=width, height=height, gap=_GAP)
        box = first_free(places, [*covered, *names.values()], inside=_inside(axes))
        if box is not None:
            names[point] = box
    return names


def _write_numbers(
    axes: Axes, points: Sequence[Point], crowd: Sequence[Point], taken: Sequence[Box]
) -> list[Box]:
    """Number the crowd, write the legend, and return what the numbers cover.

    A number stands nearest to its own point, outside rather than inside the crowd. Where it cannot,
    a long line shows whose it is.
    """
    boxes: list[Box] = []
    pixels = [_pixels(axes, point) for point in points]
    middle = [fmean(column) for column in zip(*(_pixels(axes, one) for one in crowd), strict=True)]
    for number, point in enumerate(crowd, start=1):
        own = _pixels(axes, point)
        width, height = _size(axes, str(number), margin=_NUMBER_MARGIN)
        places = rings(
            *own,
            width=width,
            height=height,
            radii=_RADII,
            num_directions=_DIRECTIONS,
            first=atan2(own[1] - middle[1], own[0] - middle[0]),
        )
        clear = [box for box in places if min(pixels, key=partial(dist, box.center)) == own]
        far = [box for box in places if dist(box.center, own) > _FAR]
        inside = _inside(axes)
        box = first_free([*clear, *far, *places], [*taken, *boxes], inside=inside) or places[0]
        boxes.append(box)
        _write(axes, str(number), box, point=point)
    if crowd:
        _write_legend(axes, crowd)
    return boxes


def _write_legend(axes: Axes, points: Sequence[Point]) -> None:
    """Write number and name of each point to the right of the axes."""
    figure: Any = axes.figure
    dots = [
        Line2D([], [], color=point.color, marker=point.marker, linestyle="", markersize=5)
        for point in points
    ]
    legend = figure.legend(
        dots,
        [f"{number}  {point.name}" for number, point in enumerate(points, start=1)],
        loc="upper left",
        bbox_to_anchor=(axes.get_position().x1 + _LEGEND_GAP, axes.get_position().y1),
        fontsize=_FONT_SIZE * min(1.0, _LEGEND_LINES / len(points)),
        frameon=False,
        borderpad=0,
        handletextpad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _places_along(axes: Axes, line: Line) -> list[Box]:
    """Return places for a line's name: right of it from the top, or above it from the left."""
    inside = _inside(axes)
    width, height = _size(axes, line.name, margin=_NUMBER_MARGIN)
    x, y = axes.transData.transform((line.at, line.at)).tolist()
    if line.crosses == "x":
        tops = [inside.top - share * (inside.top - inside.bottom) for share in _ALONG]
        return [Box(x + 1, top - height, x + 1 + width, top) for top in tops]
    lefts = [inside.left + share * (inside.right - inside.left) for share in _ALONG]
    return [Box(left, y, left + width, y + height) for left in lefts]


def _write(
    axes: Axes, text: str, box: Box, *, point: Point | None = None, color: str = "black"
) -> None:
    """Write into a box; with a line to the point, if that is given."""
    x, y = axes.transAxes.inverted().transform(box.center).tolist()
    arrow = {"arrowstyle": "-", "alpha": 0.7, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        text,
        xy=(x, y) if point is None else (point.x, point.y),
        xycoords="axes fraction" if point is None else "data",
        xytext=(x, y),
        textcoords="axes fraction",
        arrowprops=None if point is None else arrow,
        horizontalalignment="center",
        verticalalignment="center",
        fontsize=_FONT_SIZE,
        color=color,
        bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "edgecolor": "none"},
        zorder=4,
        parse_math=False,
    )


def _covered(axes: Axes, points: Sequence[Point]) -> list[Box]:
    """Return what the points cover, in pixels."""
    return [Box.around(*_pixels(axes, point), width=_POINT, height=_POINT) for point in points]


def _size(axes: Axes, text: str, *, margin: float) -> tuple[float, float]:
    """Return width and height of a text with a margin on all sides, in pixels."""
    drawn = axes.text(0, 0, text, fontsize=_FONT_SIZE, parse_math=False)
    extent = drawn.get_window_extent()
    drawn.remove()
    return float(extent.width) + 2 * margin, float(extent.height) + 2 * margin


def _inside(axes: Axes) -> Box:
    box = axes.bbox
    return Box(*map(float, (box.x0, box.y0, box.x1, box.y1)))


def _pixels(axes: Axes, point: Point) -> tuple[float, float]:
    x, y = axes.transData.transform((point.x, point.y)).tolist()
    return x, y
