"""All plots of a report, for its page and for the copy in Weights & Biases."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from sidrec.comparison.report.pareto_plot import pareto_figure
from sidrec.comparison.report.plots import bars_figure, curves_figure, usage_figure
from sidrec.types import TASKS


def report_figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Return the plots for which a report has data: Pareto, quantizers, usage, collisions, curves.

    Args:
        report: Content of ``report.json``.
    """
    rows = report["systems"]
    with_ids = [row for row in rows if row.get("usage")]
    ablation = [row for row in rows if row["name"] in report["ablation"]]
    learned = [row for row in rows if row.get("curve")]
    figures = {"pareto": pareto_figure(rows)}
    if len(ablation) > 1:
        series = {
            f"{task}, {level}": [_mean(row, f"{task}/{key}") for row in ablation]
            for task in TASKS
            for level, key in (("item level", "recall@30"), ("by ID", "sid_recall@30"))
        }
        figures["quantizers"] = bars_figure(_names(ablation), series, title="Recall@30")
    if with_ids:
        figures["usage"] = usage_figure(_names(with_ids), [row["usage"] for row in with_ids])
        keys = {"before resolution": "_before", "after it": ""}
        shares = {
            label: [row["ids"].get(f"ids/collision_rate{key}", math.nan) for row in with_ids]
            for label, key in keys.items()
        }
        figures["collisions"] = bars_figure(
            _names(with_ids), shares, title="share of the items that share their ID"
        )
    if learned:
        figures["curves"] = curves_figure(_names(learned), [row["curve"] for row in learned])
    return figures


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


def _mean(row: dict[str, Any], key: str) -> float:
    figure = row["figures"].get(key)
    return math.nan if figure is None or figure["mean"] is None else float(figure["mean"])
