"""The report's figures as SVG text, drawn without a display and without the network."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sidrec.types import TASKS

_COLOURS = {"strategy": "#1f6feb", "baseline": "#8c8c8c", "run": "#2ea043"}
_FRONT = "#d1242f"
_CYCLE = [f"C{number}" for number in range(10)]
_ROOM = 0.12  # of the axes, beside the outermost points


def pareto_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Return :func:`pareto_figure` as an element for HTML."""
    return _svg(pareto_figure(rows), "pareto")


def pareto_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw search against recommendation with intervals, and the front.

    Every system with both figures is one element whose id begins with ``point-``.
    """
    both = [row for row in rows if all(f"{task}/recall@30" in row["figures"] for task in TASKS)]
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    at = {row["name"]: _place(row) for row in both}
    for number, row in enumerate(both):
        x, y = at[row["name"]]
        colour = _COLOURS[row["kind"]]
        for index, (task, centre) in enumerate(zip(TASKS, (x, y), strict=True)):
            low, high = _interval(row["figures"][f"{task}/recall@30"], centre)
            ends = ([low, high], [y, y]) if index == 0 else ([x, x], [low, high])
            axes.plot(*ends, color=colour, alpha=0.35, linewidth=1.2, zorder=1)
        marker = "o" if row["kind"] != "baseline" else "s"
        (point,) = axes.plot(x, y, marker, color=colour, markersize=7, zorder=3)
        point.set_gid(f"point-{number}")
    _draw_front(axes, [at[row["name"]] for row in both if row["on_front"]])
    _draw_names(axes, at)
    _draw_one_task(axes, [row for row in rows if row not in both])
    axes.set_xlabel("Recall@30, search (item level)")
    axes.set_ylabel("Recall@30, recommendation (item level)")
    axes.margins(_ROOM)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
    return figure


def bars_svg(names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str) -> str:
    """Draw horizontal bars, one group for each name and one colour for each series."""
    height = 0.9 + 0.34 * len(names) * max(1, len(series)) ** 0.6
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        rows = np.arange(len(names)) + (number - (len(series) - 1) / 2) * thickness
        shown = [0.0 if math.isnan(value) else value for value in values]
        bars = axes.barh(rows, shown, thickness, label=label, color=f"C{number}")
        axes.bar_label(
            bars, ["n/a" if math.isnan(v) else f"{v:.3f}" for v in values], padding=3, fontsize=8
        )
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.margins(x=0.12)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=len(series), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure, title)


def curves_svg(names: Sequence[str], curves: Sequence[Mapping[str, Any]]) -> str:
    """Draw recall of the validation split over training steps, one panel for each task."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(TASKS))
    for task, axes in zip(TASKS, panels, strict=True):
        for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
            if task in curve["recalls"]:
                style = "-" if number < len(_CYCLE) else "--"
                colour = _CYCLE[number % len(_CYCLE)]
                (line,) = axes.plot(
                    curve["steps"], curve["recalls"][task], style, marker=".", color=colour
                )
                line.set_label(name.lstrip("_"))
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("training steps", fontsize=9)
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("Recall@30, validation", fontsize=9)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    legend = figure.legend(
        lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure, "curves")


def usage_svg(names: Sequence[str], usage: Sequence[Sequence[Sequence[int]]]) -> str:
    """Draw how often each code is used: per system one line per level, codes by falling use.

    Colour is the share of the level's most even use: 1 where a code has items / codes items.
    """
    deepest = max(len(levels) for levels in usage)
    figure = Figure(figsize=(8.4, 0.9 + 0.42 * len(names)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, deepest, sharey=True))
    image = None
    for level, axes in enumerate(panels):
        widest = max((len(levels[level]) for levels in usage if level < len(levels)), default=1)
        table = np.full((len(names), widest), np.nan)
        for row, levels in enumerate(usage):
            if level < len(levels):
                counts = np.sort(np.array(levels[level], float))[::-1]
                table[row, : len(counts)] = counts / max(counts.mean(), 1e-12)
        image = axes.imshow(
            table, aspect="auto", cmap="viridis", vmin=0, vmax=4, interpolation="nearest"
        )
        axes.set_title(f"level {level + 1}", fontsize=10)
        axes.set_xlabel("codes by falling use", fontsize=9)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="times the mean use", extend="max")
    return _svg(figure, "usage")


def _place(row: dict[str, Any]) -> tuple[float, float]:
    search, recommendation = (float(row["figures"][f"{task}/recall@30"]["mean"]) for task in TASKS)
    return search, recommendation


def _interval(figure: dict[str, Any], centre: float) -> tuple[float, float]:
    low, high = figure.get("interval") or (None, None)
    return (centre if low is None else float(low)), (centre if high is None else float(high))


def _draw_front(axes: Any, front: list[tuple[float, float]]) -> None:  # noqa: ANN401
    """Draw the border of what the front dominates, as steps."""
    if not front:
        return
    front = sorted(front)
    xs, ys = [0.0], [front[0][1]]
    for n, (x, y) in enumerate(front):
        xs += [x, x]
        ys += [y, front[n + 1][1] if n + 1 < len(front) else 0.0]
    (line,) = axes.plot(xs, ys, color=_FRONT, linewidth=1.4, alpha=0.8, zorder=2)
    line.set_gid("front")


def _draw_one_task(axes: Any, rows: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401
    """Draw systems that answer one task as dotted lines: what the others have to beat."""
    for number, row in enumerate(row for row in rows if row["figures"]):
        start = 0.02 + 0.11 * (number % 4)  # names of near lines do not cover each other
        style = {"color": _COLOURS[row["kind"]], "linestyle": ":", "linewidth": 1.0, "zorder": 0}
        text = {"fontsize": 8, "color": "#57606a", "parse_math": False}
        search, recommendation = (row["figures"].get(f"{task}/recall@30") for task in TASKS)
        if search is not None:
            axes.axvline(search["mean"], **style)
            where = (search["mean"], 1 - start)
            axes.annotate(row["name"], where, xycoords=("data", "axes fraction"), **text)
        elif recommendation is not None:
            axes.axhline(recommendation["mean"], **style)
            where = (start, recommendation["mean"])
            axes.annotate(row["name"], where, xycoords=("axes fraction", "data"), **text)


def _draw_names(axes: Any, at: dict[str, tuple[float, float]]) -> None:  # noqa: ANN401
    """Write each name beside its point, moved up or down from names that are too near."""
    if not at:
        return
    across = max(x for x, _ in at.values()) or 1.0
    up = max(y for _, y in at.values()) or 1.0
    taken: list[tuple[float, float]] = []
    for name, (x, y) in sorted(at.items(), key=lambda one: -one[1][1]):
        place = y
        while any(abs(x - a) < 0.2 * across and abs(place - b) < 0.045 * up for a, b in taken):
            place -= 0.045 * up
        taken.append((x, place))
        moved = abs(place - y) > 1e-12
        axes.annotate(
            name,
            (x, y),
            xytext=(x + 0.015 * across, place),
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "alpha": 0.25} if moved else None,
            zorder=4,
            parse_math=False,
        )


def _svg(figure: Figure, salt: str) -> str:
    """Return the drawing as an element for HTML, the same text for the same figures."""
    stream = io.StringIO()
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
