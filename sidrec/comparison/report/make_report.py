"""Report of a comparison: read its runs, and write JSON, Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sidrec import __version__
from sidrec.comparison.execution.runner import Outcome
from sidrec.comparison.paper_files import write_paper_files
from sidrec.comparison.plan.comparison_settings import Comparison
from sidrec.comparison.plan.stages import Cell, Stage, in_order
from sidrec.comparison.report.html_page import to_html
from sidrec.comparison.report.markdown import to_markdown
from sidrec.comparison.report.plots import learning_curve
from sidrec.comparison.report.publish import publish
from sidrec.comparison.report.side_by_side import side_by_side
from sidrec.comparison.statistics.judge import evaluate_systems
from sidrec.comparison.statistics.tested_runs import System, made_elsewhere, read_run, requests_of
from sidrec.corpus.store import Corpus
from sidrec.errors import RunError
from sidrec.files import atomic_file, write_json
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles


def make_report(
    comparison: Comparison,
    cells: Sequence[Cell],
    outcomes: Mapping[str, Outcome],
    *,
    corpus: Corpus,
    command: str,
    title: str,
) -> dict[str, Any]:
    """Evaluate every finished run and write the report into the folder.

    Files are ``report.{json,md,html,tex,csv}``, ``pareto.pdf`` and ``trec/``.

    Args:
        comparison: Settings of the comparison.
        cells: Cells of the table.
        outcomes: Outcomes of the stages, by key.
        corpus: Corpus to which all runs must belong.
        command: Command that makes the report.
        title: Title of the page.

    Returns:
        Content of ``report.json``.

    Raises:
        RunError: If there is no run at all.
        DataError: If runs belong to different corpora or splits.
    """
    systems = [*_systems(comparison, cells, outcomes), *made_elsewhere(comparison.runs)]
    if not any(system.runs for system in systems):
        reasons = [outcome.reason for outcome in outcomes.values() if outcome.reason]
        raise RunError(f"There is no run to compare. First failure: {(reasons or ['none'])[0]}")
    requests = requests_of(systems, corpus)
    settings = comparison.report
    report: dict[str, Any] = {
        "title": title,
        "command": command,
        "version": __version__,
        "corpus": str(corpus.folder),
        "corpus_fingerprint": corpus.fingerprint,
        "num_items": corpus.num_items,
        "seeds": comparison.seeds,
        "settings": asdict(settings),
        "failures": _failures(cells, outcomes),
        "ablation": _ablation(comparison),
        **evaluate_systems(systems, requests, settings),
    }
    for row, system in zip(report["systems"], systems, strict=True):
        row["usage"] = _usage(system.bundle)
        curve = learning_curve(system.runs[0].folder) if system.runs else None
        row["curve"] = None if curve is None else curve._asdict()
    report["lists"] = side_by_side(
        systems, requests, corpus, per_task=settings.requests_per_task, seed=settings.seed
    )
    _write(report, Path(comparison.out))
    write_paper_files(report, systems, requests, Path(comparison.out))
    publish(report, settings)
    return report


def _write(report: dict[str, Any], out: Path) -> None:
    write_json(out / "report.json", report)
    for name, text in (("report.md", to_markdown(report)), ("report.html", to_html(report))):
        with atomic_file(out / name) as temporary:
            temporary.write_text(text)


def _systems(
    comparison: Comparison, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]
) -> list[System]:
    out = Path(comparison.out)
    systems = []
    for name in [*comparison.strategies, *comparison.baselines]:
        own = [cell for cell in cells if cell.system == name]
        there = [cell for cell in own if not outcomes[cell.last.key].reason]
        first = there[0] if there else None
        bundle = first.ids.folder(out) if first is not None and first.ids is not None else None
        systems.append(
            System(
                name=name,
                kind="strategy" if name in comparison.strategies else "baseline",
                runs=[read_run(cell.last.folder(out), seed=cell.seed) for cell in there],
                missing={
                    str(cell.seed): outcomes[cell.last.key].reason
                    for cell in own
                    if cell not in there
                },
                bundle=bundle,
                commands=[] if first is None else _commands(first, out),
            )
        )
    return systems


def _commands(cell: Cell, out: Path) -> list[str]:
    return [f"sidrec {' '.join(stage.arguments(out))}" for stage in in_order([cell])]


def _failures(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    stages: list[Stage] = in_order(cells)
    return [
        {"label": stage.label, "key": stage.key, **outcomes[stage.key]._asdict()}
        for stage in stages
        if outcomes[stage.key].reason
    ]


def _ablation(comparison: Comparison) -> list[str]:
    """Return the strategies that differ from the reference only in how they make IDs."""
    reference = comparison.strategies.get(comparison.report.reference)
    if reference is None:
        return []
    kept = ("embeddings", "fusion", "dim", "reader", "generator")
    return [
        name
        for name, strategy in comparison.strategies.items()
        if all(getattr(strategy, key) == getattr(reference, key) for key in kept)
    ]


def _usage(bundle: Path | None) -> list[list[int]] | None:
    """Return the number of items per code at each level, separately per task where IDs differ."""
    if bundle is None:
        return None
    ids = TaskBundles.load(bundle)
    tables = {id(one): one.table for one in ids.bundles.values()}.values()
    return [
        torch.bincount(table.codes[:, level].long(), minlength=size).tolist()
        for table in tables
        for level, size in enumerate(table.codebook_sizes)
    ]
