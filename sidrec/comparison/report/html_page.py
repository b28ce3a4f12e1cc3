"""HTML form of the report: one self-contained page."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from sidrec.comparison.report.markdown import (
    SCALE,
    SOURCE,
    main_table,
    notes,
    paper_rows,
    tests_table,
)
from sidrec.comparison.report.plots import as_svg
from sidrec.comparison.report.report_figures import report_figures
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
