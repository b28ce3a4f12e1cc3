"""Validation recall over training steps, from the logs of runs: how far from converged they are."""

import csv
from pathlib import Path
from typing import NamedTuple

from sidrec.comparison.results import trained_tasks
from sidrec.run_directory import RunDirectory
from sidrec.types import TASKS, Task


class Curve(NamedTuple):
    """Recall@30 of the validation split over one training.

    Attributes:
        steps: Optimizer steps done, ascending.
        recalls: Per task, one figure for each of ``steps``.
    """

    steps: list[int]
    recalls: dict[Task, list[float]]


def learning_curve(folder: Path) -> Curve | None:
    """Return the curve of a run from ``logs/*/metrics.csv``; None where nothing was validated.

    A resumed run has several logs: of two figures for one step the later log's counts. Other
    loggers than the CSV logger leave no curve here. Tasks that the run was not trained for are left
    out.
    """
    run = RunDirectory(folder)
    trained = trained_tasks(run)
    found: dict[int, dict[Task, float]] = {}
    for log in sorted(run.logs.glob("*/metrics.csv"), key=_number):
        with log.open(newline="") as stream:
            for row in csv.DictReader(stream):
                values = {
                    task: row.get(f"val/{task}/recall@30") for task in TASKS if task in trained
                }
                known = {task: float(value) for task, value in values.items() if value}
                if known:
                    found[int(row["step"]) + 1] = known
    if not found:
        return None
    steps = sorted(found)
    tasks = [task for task in TASKS if all(task in found[step] for step in steps)]
    return Curve(steps, {task: [found[step][task] for step in steps] for task in tasks})


def _number(log: Path) -> tuple[int, str]:
    """Order ``version_10`` after ``version_9``."""
    digits = "".join(filter(str.isdigit, log.parent.name))
    return int(digits or 0), log.parent.name
