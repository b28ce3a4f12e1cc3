"""Output files for papers: LaTeX table, CSV, Pareto plot as PDF, TREC runs with their qrels."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sidrec.comparison.report.pareto_plot import pareto_figure
from sidrec.comparison.statistics.tested_runs import System
from sidrec.files import atomic_file
from sidrec.types import TASKS, Task

_SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_paper_files(
    report: dict[str, Any],
    systems: Sequence[System],
    requests: Mapping[Task, Sequence[str]],
    out: Path,
) -> None:
    """Write ``report.tex``, ``report.csv``, ``pareto.pdf`` and ``trec/`` into the folder."""
    texts = {"report.tex": to_latex(report), "report.csv": to_csv(report)}
    for task in TASKS:
        for name, text in trec_files(systems, task, requests.get(task, ())).items():
            texts[f"trec/{name}"] = text
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / name) as temporary:
            temporary.write_text(text)
    with atomic_file(out / "pareto.pdf") as temporary:
        pareto_figure(report["systems"]).savefig(
            temporary, format="pdf", metadata={"CreationDate": None}
        )


def to_latex(report: dict[str, Any]) -> str:
    """Return recall@30 of both tasks as a booktabs table: best mean bold, stars as reported."""
    rows = report["systems"]
    best = {task: max((_mean(row, task) for row in rows), default=0.0) for task in TASKS}
    lines = [r"\begin{tabular}{lrr}", r"\toprule", r"Recall@30 & search & recommendation \\"]
    lines.append(r"\midrule")
    for row in rows:
        cells = [_latex_cell(row, task, best[task]) for task in TASKS]
        lines.append(" & ".join([escape_latex(row["name"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(report: dict[str, Any]) -> str:
    """Return every figure of every system under every seed as CSV, one value per line."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["system", "kind", "seed", "figure", "value"])
    for row in report["systems"]:
        for key, figure in row["figures"].items():
            if isinstance(figure, dict) and len(figure["values"]) == len(row["seeds"]):
                for seed, value in zip(row["seeds"], figure["values"], strict=True):
                    writer.writerow([row["name"], row["kind"], seed, key, repr(value)])
    return stream.getvalue()


def trec_files(systems: Sequence[System], task: Task, requests: Sequence[str]) -> dict[str, str]:
    """Return qrels and one TREC run file per system and seed; scores fall with the rank.

    Ids and names are percent-encoded, since the format separates columns by blanks.
    """
    answering = [one for one in systems if one.has_answers(task)]
    if not requests or not answering:
        return {}
    first = answering[0].runs[0].answers[task]
    files = {
        f"{task}.qrels": "".join(
            f"{quote(name)} 0 {item} {grade}\n"
            for name in requests
            for item, grade in zip(first[name].relevant, first[name].all_grades, strict=True)
        )
    }
    for system in answering:
        for number, run in enumerate(system.runs):
            tag = quote(system.name, safe="")
            files[f"{task}-{tag}-{number}.run"] = "".join(
                f"{quote(name)} Q0 {item} {rank} {-rank} {tag}\n"
                for name in requests
                for rank, item in enumerate(run.answers[task][name].items, start=1)
            )
    return files


def escape_latex(text: str) -> str:
    """Escape plain text for LaTeX."""
    return "".join(_SPECIAL.get(char, char) for char in text)


def _latex_cell(row: dict[str, Any], task: Task, best: float) -> str:
    figure = row["figures"].get(f"{task}/recall@30")
    if figure is None or figure["mean"] is None:
        return "--"
    text = f"{figure['mean']:.3f}"
    if figure["mean"] == best:
        text = rf"\textbf{{{text}}}"
    if figure["deviation"] is not None:
        text += rf" $\pm$ {figure['deviation']:.3f}"
    test = row["tests"].get(task)
    return text + (r"$^{*}$" if test and test["significant"] else "")


def _mean(row: dict[str, Any], task: Task) -> float:
    figure = row["figures"].get(f"{task}/recall@30")
    return 0.0 if figure is None or figure["mean"] is None else float(figure["mean"])
