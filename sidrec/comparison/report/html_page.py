"""HTML form of the report: one self-contained page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from sidrec.comparison.report.markdown import (
    PARTS,
    SCALE,
    SOURCE,
    main_table,
    notes,
    paper_rows,
    parts_table,
    tests_table,
)
from sidrec.comparison.report.pareto_plot import pareto_figure
from sidrec.comparison.report.plots import as_svg, bars_figure, curves_figure, usage_figure
from sidrec.types import TASKS

_TEMPLATE = "page.html.j2"


def to_html(report: dict[str, Any]) -> str:
    """Return the HTML page; external text is escaped, drawings are inline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = report["systems"]
    with_ids = [row for row in rows if row.get("usage")]
    ablation = [row for row in rows if row["name"] in report["ablation"]]
    drawings = {name: as_svg(one, name) for name, one in report_figures(report).items()}
    one_task = [
        row["name"]
        for row in rows
        if row["figures"] and not all(f"{task}/recall@30" in row["figures"] for task in TASKS)
    ]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        main=main_table(report),
        classes=[" ".join(_classes(row)) for row in rows],
        notes=notes(report),
        tests=tests_table(report),
        parts_title=PARTS,
        parts=parts_table(report),
        paper=paper_rows(),
        paper_source=SOURCE,
        paper_scale=SCALE,
        one_task=one_task,
        with_ids=with_ids,
        learned=[row for row in rows if row.get("curve")],
        ablation=ablation,
        figures={name: Markup(one) for name, one in drawings.items()},  # noqa: S704 (our own)
    )


def _classes(row: dict[str, Any]) -> list[str]:
    return [row["kind"], *(["front"] if row["on_front"] else [])]


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
