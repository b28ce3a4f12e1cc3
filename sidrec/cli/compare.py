"""``sidrec compare``: strategies × seeds → table, significance, Pareto plot, report."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from sidrec.cli.parser import CommandParser
from sidrec.comparison.execution.runner import (
    Outcome,
    launch_here,
    plan_lines,
    run_stage,
    run_stages,
    stages_hear_signals,
    threads_of,
)
from sidrec.comparison.execution.slurm import array_jobs, submit, write_scripts
from sidrec.comparison.execution.stage_cache import is_done
from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import Comparison, read_comparison
from sidrec.comparison.plan.stages import Cell, Stage, in_order
from sidrec.comparison.report.publish import read_discussion
from sidrec.console import say
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, RunError


def main(arguments: list[str]) -> None:
    """Run ``sidrec compare`` with the words after the command's name.

    Raises:
        RunError: If a stage failed; everything else is finished and reported.
    """
    given = _parser().parse_args(arguments)
    if given.jobs < 1 or (given.jobs > 1 and given.launcher != "local"):
        raise ConfigError(
            f"--jobs must be 1 or more, and belongs to --launcher local; got {given.jobs}."
        )
    modes = [name for name in ("dry_run", "report_only", "only") if given[name]]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} contradict each other; leave one out.")
    comparison = read_comparison(Path(given.config))
    if given.strategies:
        comparison = comparison.only([name.strip() for name in given.strategies.split(",")])
    read_discussion(comparison.report)  # fails before hours of work, not after
    corpus = Corpus.load(comparison.corpus)
    cells = cells_of(comparison, fingerprint=corpus.fingerprint)
    stages, out = in_order(cells), Path(comparison.out)
    if comparison.runs and not given.only:
        _check_runs(comparison, corpus)
    if given.dry_run:
        sys.stdout.write("\n".join(plan_lines(cells, stages, out)) + "\n")
    elif given.only:
        _run_one(given.only, stages, out)
    elif given.launcher == "slurm" and not given.report_only:
        _write_jobs(given, stages, out)
    else:
        outcomes = _standing(stages, out) if given.report_only else None
        launch = partial(launch_here, num_threads=threads_of(given.jobs))
        outcomes = outcomes or run_stages(stages, out, launch=launch, jobs=given.jobs)
        command = f"sidrec compare {' '.join(arguments)}"
        _report(comparison, cells, outcomes, corpus, command, Path(given.config).stem)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sidrec compare",
        description="Strategies x seeds -> table, significance, Pareto plot, report.",
    )
    parser.add_argument(
        "--config", type=str, required=True, help="YAML file, or packaged: compare/NAME.yaml."
    )
    parser.add_argument("--strategies", type=str | None, help="Only these, separated by commas.")
    parser.add_argument(
        "--launcher", type=Literal["local", "slurm"], default="local", help="Where."
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="Stages at once on this machine; they share the cores."
    )
    parser.add_argument("--dry_run", action="store_true", help="Print the plan and do nothing.")
    parser.add_argument("--report_only", action="store_true", help="Report what is finished.")
    parser.add_argument("--only", type=str | None, help="Run one stage of the plan, by its key.")
    return parser


def _check_runs(comparison: Comparison, corpus: Corpus) -> None:
    """Check that runs from outside the comparison fit, before hours of training."""
    from sidrec.comparison.statistics.tested_runs import made_elsewhere, requests_of

    requests_of(made_elsewhere(comparison.runs), corpus)


def _report(
    comparison: Comparison,
    cells: Sequence[Cell],
    outcomes: dict[str, Outcome],
    corpus: Corpus,
    command: str,
    name: str,
) -> None:
    from sidrec.comparison.report.make_report import make_report

    report = make_report(
        comparison,
        cells,
        outcomes,
        corpus=corpus,
        command=command,
        title=f"Semantic IDs for search and recommendation: {name}",
    )
    _print(report)
    for suffix in ("json", "md", "html"):
        say(f"written: {Path(comparison.out) / f'report.{suffix}'}")
    if comparison.wandb is not None:
        from sidrec.comparison.report.wandb_report import log_report

        log_report(report, comparison.wandb, Path(comparison.out))
    if report["failures"]:
        first = report["failures"][0]
        raise RunError(
            f"{len(report['failures'])} stages have no result; the report covers the others. "
            f"First: {first['label']}: {first['reason']}"
        )


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sidrec.comparison.report.markdown import main_table, notes

    headings, rows = main_table(report)
    table = Table()
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    width = None if sys.stdout.isatty() else 240
    console = Console(file=sys.stdout, width=width)
    console.print(table)
    for note in notes(report):
        console.print(Text(note))


def _standing(stages: Sequence[Stage], out: Path) -> dict[str, Outcome]:
    return {
        stage.key: Outcome("kept", "") if is_done(stage, out) else Outcome("blocked", "not run")
        for stage in stages
    }


def _run_one(key: str, stages: Sequence[Stage], out: Path) -> None:
    chosen = next((stage for stage in stages if stage.key == key), None)
    if chosen is None:
        raise ConfigError(f"--only {key}: the plan has no such stage; --dry_run prints it.")
    lacking = [one.stage.label for one in chosen.inputs if not is_done(one.stage, out)]
    if lacking:
        raise RunError(
            f"{chosen.label} needs {lacking[0]}, which is not finished; run that stage first."
        )
    if is_done(chosen, out):
        say(f"already finished: {chosen.label}")
        return
    with stages_hear_signals():
        outcome = run_stage(chosen, out, launch=partial(launch_here, num_threads=None))
    if outcome.reason:
        raise RunError(f"{chosen.label}: {outcome.reason}")


def _write_jobs(given: Namespace, stages: Sequence[Stage], out: Path) -> None:
    left = [stage for stage in stages if not is_done(stage, out)]
    compare = [sys.executable, "-m", "sidrec", "compare", "--config", given.config]
    if given.strategies:
        compare += ["--strategies", given.strategies]
    scripts = write_scripts(array_jobs(left), compare, out / "slurm")
    jobs = submit(scripts)
    for script, job in zip(scripts, jobs or ["not submitted"] * len(scripts), strict=True):
        sys.stdout.write(f"{script}  {job}\n")
    if not jobs:
        say(
            "no sbatch on this machine: submit the scripts in this order, each after the previous "
            "one"
        )
