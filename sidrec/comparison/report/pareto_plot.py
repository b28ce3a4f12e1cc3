"""Pareto plot of search against recommendation, with intervals and the front."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidrec.comparison.report.plots import as_svg
from sidrec.types import TASKS

_COLORS = {"strategy": "#1f6feb", "baseline": "#8c8c8c", "run": "#2ea043"}
_FRONT = "#d1242f"
_SIZE = (9.6, 5.8)  # inches
_ROWS_PER_COLUMN = 28  # of the legend


def pareto_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Return :func:`pareto_figure` as an SVG element for HTML."""
    return as_svg(pareto_figure(rows), "pareto")


def pareto_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw every system: a point if it answers both tasks, a dotted line if it answers one.

    Numbers follow the order of the table and refer to the legend. The id of a point begins with
    ``point-``.

    Args:
        rows: Rows of the report's table, with name, kind, on_front and figures.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    shown = [row for row in rows if _recalls(row)]
    for number, row in enumerate(shown, start=1):
        if len(_recalls(row)) == len(TASKS):
            _draw_point(axes, row, number)
        else:
            _draw_line(axes, row, number)
    _draw_front(axes, sorted(tuple(_recalls(row).values()) for row in shown if row["on_front"]))
    axes.set_xlabel("Recall@30, search (item level)")
    axes.set_ylabel("Recall@30, recommendation (item level)")
    axes.margins(0.12)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
    if shown:
        names = [f"{number}  {row['name']}" for number, row in enumerate(shown, start=1)]
        handles = [axes.plot([], [], _marker(row), color=_COLORS[row["kind"]])[0] for row in shown]
        legend = figure.legend(
            handles,
            names,
            loc="outside right upper",
            ncols=1 + (len(shown) - 1) // _ROWS_PER_COLUMN,
            fontsize=8,
            frameon=False,
        )
        for text, row in zip(legend.get_texts(), shown, strict=True):
            text.set_parse_math(False)
            text.set_color(_FRONT if row["on_front"] else "black")
    return figure


def _recalls(row: dict[str, Any]) -> dict[str, float]:
    figures = {task: row["figures"].get(f"{task}/recall@30") for task in TASKS}
    return {task: float(figure["mean"]) for task, figure in figures.items() if figure is not None}


def _marker(row: dict[str, Any]) -> str:
    if len(_recalls(row)) < len(TASKS):
        return ":"
    return "s" if row["kind"] == "baseline" else "o"


def _draw_point(axes: Axes, row: dict[str, Any], number: int) -> None:
    """Draw a system that answers both tasks, with the intervals of both figures."""
    search, recommendation = (row["figures"][f"{task}/recall@30"] for task in TASKS)
    x, y = _recalls(row).values()
    color = _COLORS[row["kind"]]
    for xs, ys in ((_interval(search), [y, y]), ([x, x], _interval(recommendation))):
        axes.plot(xs, ys, color=color, alpha=0.35, linewidth=1.2, zorder=1)
    (dot,) = axes.plot(x, y, _marker(row), color=color, markersize=6, zorder=3)
    dot.set_gid(f"point-{number}")
    axes.annotate(str(number), (x, y), (4, 4), textcoords="offset points", fontsize=8, zorder=4)


def _interval(figure: dict[str, Any]) -> list[float]:
    ends = figure.get("interval") or (None, None)
    return [float(figure["mean"] if end is None else end) for end in ends]


def _draw_front(axes: Axes, front: Sequence[tuple[float, ...]]) -> None:
    """Draw the border of the area that the front dominates, as steps from the left."""
    if not front:
        return
    xs, ys = [0.0], [front[0][1]]
    for n, (x, y) in enumerate(front):
        xs += [x, x]
        ys += [y, front[n + 1][1] if n + 1 < len(front) else 0.0]
    (line,) = axes.plot(xs, ys, color=_FRONT, linewidth=1.4, alpha=0.8, zorder=2)
    line.set_gid("front")


def _draw_line(axes: Axes, row: dict[str, Any], number: int) -> None:
    """Draw a system that answers one task as a dotted reference line."""
    ((task, mean),) = _recalls(row).items()
    style: dict[str, Any] = {"color": _COLORS[row["kind"]], "linestyle": ":", "zorder": 0}
    small: dict[str, Any] = {"fontsize": 8, "clip_on": True}
    if task == "search":
        axes.axvline(mean, linewidth=1.0, **style)
        axes.text(mean, 1.0, str(number), transform=axes.get_xaxis_transform(), va="top", **small)
    else:
        axes.axhline(mean, linewidth=1.0, **style)
        axes.text(1.0, mean, str(number), transform=axes.get_yaxis_transform(), ha="right", **small)
