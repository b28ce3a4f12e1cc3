"""Plots of the report, drawn without display and network."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sidrec.comparison.statistics.tested_runs import trained_tasks
from sidrec.runs.directory import RunDirectory
from sidrec.types import TASKS, Task


class Curve(NamedTuple):
    """Learning curve: Recall@30 of the validation split over one training.

    Attributes:
        steps: Number of optimizer steps done, ascending.
        recalls: Recall@30 per task, one figure for each of ``steps``.
        processor_s: Processor seconds of rank 0's process at each of ``steps``, from its start to
            the end of the validation; empty where a log does not have them.
    """

    steps: list[int]
    recalls: dict[Task, list[float]]
    processor_s: list[float]


def learning_curve(folder: Path) -> Curve | None:
    """Return the learning curve of a run from ``logs/*/metrics.csv``; None without validation.

    A resumed run has several logs; for a step in two logs, the later log counts. Only the CSV
    logger is read. Tasks that the run does not train are left out.
    """
    run = RunDirectory(folder)
    trained = trained_tasks(run)
    found: dict[int, dict[Task, float]] = {}
    spent: dict[int, float] = {}
    for log in sorted(run.logs.glob("*/metrics.csv"), key=_number):
        with log.open(newline="") as stream:
            for row in csv.DictReader(stream):
                values = {
                    task: row.get(f"val/{task}/recall@30") for task in TASKS if task in trained
                }
                known = {task: float(value) for task, value in values.items() if value}
                if known:
                    found[int(row["step"]) + 1] = known
                if seconds := row.get("speed/processor_s"):
                    spent[int(row["step"]) + 1] = float(seconds)
    if not found:
        return None
    steps = sorted(found)
    tasks = [task for task in TASKS if all(task in found[step] for step in steps)]
    recalls = {task: [found[step][task] for step in steps] for task in tasks}
    has_time = all(step in spent for step in steps)
    return Curve(steps, recalls, [spent[step] for step in steps] if has_time else [])


def _number(log: Path) -> tuple[int, str]:
    """Return a sort key that orders ``version_10`` after ``version_9``."""
    digits = "".join(filter(str.isdigit, log.parent.name))
    return int(digits or 0), log.parent.name


_CYCLE = [f"C{number}" for number in range(10)]


def bars_figure(
    names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str
) -> Figure:
    """Draw horizontal bars, one group per name and one color per series."""
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
    return figure


def curves_figure(
    names: Sequence[str], curves: Sequence[Mapping[str, Any]], *, over_time: bool = False
) -> Figure:
    """Draw validation recall over training steps, one panel per task.

    Args:
        names: Name of each curve.
        curves: Fields of ``Curve``.
        over_time: Draw over processor minutes instead of steps; each curve must have them.
    """
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(TASKS))
    for task, axes in zip(TASKS, panels, strict=True):
        for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
            if task in curve["recalls"]:
                style = "-" if number < len(_CYCLE) else "--"
                color = _CYCLE[number % len(_CYCLE)]
                places = [one / 60 for one in curve["processor_s"]] if over_time else curve["steps"]
                (line,) = axes.plot(places, curve["recalls"][task], style, marker=".", color=color)
                line.set_label(name.lstrip("_"))
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("processor minutes" if over_time else "training steps", fontsize=9)
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("Recall@30, validation", fontsize=9)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    legend = figure.legend(
        lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def usage_figure(names: Sequence[str], usage: Sequence[Sequence[Sequence[int]]]) -> Figure:
    """Draw code usage: one line per level of each system, codes by falling use.

    Color is use relative to an even level: 1 where a code has (number of items / number of codes).
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
    return figure


def as_svg(figure: Figure, salt: str) -> str:
    """Return the drawing as an SVG element for HTML; equal figures give equal text."""
    stream = io.StringIO()
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
