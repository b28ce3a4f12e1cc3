"""The Pareto plot: search against recommendation, with intervals and the front."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidrec.comparison.report.plots import as_svg
from sidrec.comparison.report.point_names import Line, Point, write_names
from sidrec.types import TASKS

_COLORS = {"strategy": "#1f6feb", "baseline": "#8c8c8c", "run": "#2ea043"}
_FRONT = "#d1242f"
_ROOM = 0.12  # of the axes, beside the outermost points
_SIZE = (9.6, 5.8)  # inches
_AXES = (0.075, 0.1, 0.91, 0.88)  # left, bottom, width, height, of the figure
_BESIDE_LEGEND = (0.075, 0.1, 0.675, 0.88)


def pareto_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Return :func:`pareto_figure` as an element for HTML."""
    return as_svg(pareto_figure(rows), "pareto")


def pareto_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw every system: a point if it answers both tasks, a dotted line if it answers one.

    Names stand beside their points where they cover nothing, those on the front come first. Where
    points crowd they have numbers, and a legend gives the names. The id of a point begins with
    ``point-``.

    Args:
        rows: Of the report's table: name, kind, on_front, figures.
    """
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes(_AXES)
    both = [row for row in rows if _num_tasks(row) == len(TASKS)]
    points = [_draw_point(axes, row, number) for number, row in enumerate(both)]
    _draw_front(axes, sorted((point.x, point.y) for point in points if point.goes_first))
    lines = [_draw_line(axes, row) for row in rows if _num_tasks(row) == 1]
    axes.set_xlabel("Recall@30, search (item level)")
    axes.set_ylabel("Recall@30, recommendation (item level)")
    axes.margins(_ROOM)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
    write_names(axes, points, lines, beside_legend=_BESIDE_LEGEND)
    return figure


def _num_tasks(row: dict[str, Any]) -> int:
    return sum(f"{task}/recall@30" in row["figures"] for task in TASKS)


def _draw_point(axes: Axes, row: dict[str, Any], number: int) -> Point:
    """Draw a system that answers both tasks, and the intervals of both figures."""
    search, recommendation = (row["figures"][f"{task}/recall@30"] for task in TASKS)
    x, y = float(search["mean"]), float(recommendation["mean"])
    color, marker = _COLORS[row["kind"]], "s" if row["kind"] == "baseline" else "o"
    for xs, ys in ((_interval(search), [y, y]), ([x, x], _interval(recommendation))):
        axes.plot(xs, ys, color=color, alpha=0.35, linewidth=1.2, zorder=1)
    (dot,) = axes.plot(x, y, marker, color=color, markersize=6, zorder=3)
    dot.set_gid(f"point-{number}")
    return Point(row["name"], x, y, color, marker, goes_first=bool(row["on_front"]))


def _interval(figure: dict[str, Any]) -> list[float]:
    ends = figure.get("interval") or (None, None)
    return [float(figure["mean"] if end is None else end) for end in ends]


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """Draw the border of what the front dominates, as steps from the left."""
    if not front:
        return
    xs, ys = [0.0], [front[0][1]]
    for n, (x, y) in enumerate(front):
        xs += [x, x]
        ys += [y, front[n + 1][1] if n + 1 < len(front) else 0.0]
    (line,) = axes.plot(xs, ys, color=_FRONT, linewidth=1.4, alpha=0.8, zorder=2)
    line.set_gid("front")


def _draw_line(axes: Axes, row: dict[str, Any]) -> Line:
    """Draw a system that answers one task as a dotted line: what the others have to beat."""
    style: dict[str, Any] = {"color": _COLORS[row["kind"]], "linestyle": ":", "zorder": 0}
    search, recommendation = (row["figures"].get(f"{task}/recall@30") for task in TASKS)
    if search is not None:
        axes.axvline(search["mean"], linewidth=1.0, **style)
        return Line(row["name"], "x", float(search["mean"]))
    axes.axhline(recommendation["mean"], linewidth=1.0, **style)
    return Line(row["name"], "y", float(recommendation["mean"]))
