"""Tested runs: read them, and check that all share one corpus, split and set of requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sidrec.comparison.statistics.significance import Groups, Values
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError, RunError
from sidrec.figures import Figures, Prediction, ranked_lists
from sidrec.files import read_json
from sidrec.generator.training.predictions import read_predictions
from sidrec.metrics import hits, recall_at_k
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.types import TASKS, Task

DEPTH = 30  # cut-off of recall
SystemKind = Literal["strategy", "baseline", "run"]


@dataclass(frozen=True)
class TestedRun:
    """Tested run of one system under one seed.

    Attributes:
        seed: Seed of the run; None if no seed affects the system.
        folder: Run directory.
        figures: Content of ``metrics.json``.
        answers: Predictions of each task, by request; none for an untrained task,
            since such answers say nothing about its Semantic IDs.
    """

    seed: int | None
    folder: Path
    figures: Figures
    answers: dict[Task, dict[str, Prediction]]


@dataclass(frozen=True)
class System:
    """Row of the table: one system with its runs.

    Attributes:
        name: Unique name.
        kind: Origin of the system.
        runs: Available runs, one per seed.
        missing: Reason for each missing run, by seed.
        bundle: Semantic IDs of the first run; None for systems without.
        commands: Commands that made the first run, stage by stage.
    """

    name: str
    kind: SystemKind
    runs: list[TestedRun]
    missing: dict[str, str] = field(default_factory=dict)
    bundle: Path | None = None
    commands: list[str] = field(default_factory=list)

    def has_answers(self, task: Task) -> bool:
        """Return whether there is at least one run, and every run answers the task."""
        return bool(self.runs) and all(run.answers.get(task) for run in self.runs)

    @property
    def seeds_are_known(self) -> bool:
        """Whether variation over seeds is known: two or more runs, or one that no seed affects."""
        return len(self.runs) > 1 or [run.seed for run in self.runs] == [None]

    def values(self, task: Task, requests: Sequence[str]) -> Values:
        """Return item-level recall@30 of each request under each seed."""
        rows = [_recalls([run.answers[task][one] for one in requests]) for run in self.runs]
        return np.stack(rows) if rows else np.zeros((0, len(requests)))

    def semantic_id_values(self, task: Task, requests: Sequence[str]) -> Values | None:
        """Return SID-level recall@30 of each request under each seed; None without Semantic IDs."""
        answers = [[run.answers[task][one] for one in requests] for run in self.runs]
        if not all(one.semantic_id_ranks for row in answers for one in row):
            return None
        return np.array([[_semantic_id_recall(one) for one in row] for row in answers])


def read_run(folder: Path, *, seed: int | None) -> TestedRun:
    """Read the results of ``sidrec test`` or ``sidrec baselines`` from a run directory.

    Raises:
        RunError: If the run is unfinished or untested.
        DataError: If a file is damaged.
    """
    run = RunDirectory(folder)
    if run.state() != "finished":
        raise RunError(f"{folder} is not a finished run (state '{run.state()}'); finish it first.")
    if not run.predictions.exists():
        raise RunError(f"{run.predictions} does not exist; run `sidrec test --from {folder}`.")
    predictions = read_predictions(run.predictions)
    splits = sorted({one.split for one in predictions} - {"test"})
    if splits:
        raise DataError(f"{run.predictions} answers the split '{splits[0]}', expected 'test'.")
    answers: dict[Task, dict[str, Prediction]] = {task: {} for task in TASKS}
    trained = trained_tasks(run)
    for one in predictions:
        if one.relevant and one.task in trained:
            answers[one.task][one.request_id] = one
    return TestedRun(seed, folder, read_json(run.metrics), answers)


def made_elsewhere(runs: Mapping[str, Sequence[str]]) -> list[System]:
    """Read runs from outside the comparison.

    Args:
        runs: Name to run directories, one per seed.

    Raises:
        RunError: If one is unfinished or untested.
        DataError: If a file is damaged, or answers another split.
    """
    systems = []
    for name, folders in runs.items():
        own = [read_run(Path(folder), seed=number) for number, folder in enumerate(folders)]
        commands = [f"sidrec test --from {folder}" for folder in folders]
        systems.append(System(name=name, kind="run", runs=own, commands=commands))
    return systems


def trained_tasks(run: RunDirectory) -> set[Task]:
    """Return the tasks with a share of the training batches; both where the run has no shares."""
    config = read_config(run.config) if run.config.exists() else {}
    data = config.get("data") or {}
    shares = (data.get("init_args") or {}).get("tasks") or {}
    return {task for task in TASKS if shares.get(f"{task}_share", 1.0) > 0}


def requests_of(systems: Sequence[System], corpus: Corpus) -> dict[Task, list[str]]:
    """Return the requests that every system answered, after a check that all runs match.

    Raises:
        DataError: If two runs belong to different corpora, or answer different requests.
    """
    requests: dict[Task, list[str]] = {}
    asked: dict[Task, tuple[Path, dict[str, tuple[int, ...]]]] = {}
    for system in systems:
        for run in system.runs:
            _check_corpus(run, corpus)
            for task in TASKS:
                own = {name: one.relevant for name, one in run.answers[task].items()}
                if not own:
                    continue
                first, expected = asked.setdefault(task, (run.folder, own))
                _check_same(run.folder, own, first, expected, task)
                requests.setdefault(task, sorted(own))
    return requests


def groups_of(systems: Sequence[System], task: Task, requests: Sequence[str]) -> Groups:
    """Return the number of each request's group, the sampling unit of a test.

    Queries with the same right answers form one group, since a query and its paraphrase are not
    independent. Every user is a separate group.
    """
    if task == "recommendation" or not requests:
        return np.arange(len(requests))
    answers = next(one for one in systems if one.has_answers(task)).runs[0].answers[task]
    keys = [tuple(sorted(answers[name].relevant)) for name in requests]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _check_corpus(run: TestedRun, corpus: Corpus) -> None:
    found = read_json(RunDirectory(run.folder).manifest).get("corpus_fingerprint")
    if found != corpus.fingerprint:
        raise DataError(
            f"{run.folder} belongs to corpus {str(found)[:12]}, the comparison to "
            f"{corpus.fingerprint[:12]} ({corpus.folder}); one table holds one corpus."
        )


def _check_same(
    folder: Path,
    own: dict[str, tuple[int, ...]],
    first: Path,
    expected: dict[str, tuple[int, ...]],
    task: Task,
) -> None:
    if own.keys() != expected.keys():
        raise DataError(
            f"{folder} answers {len(own)} {task} requests, {first} {len(expected)}, and they are "
            "not the same; test both on the same split."
        )
    for name, relevant in own.items():
        if set(relevant) != set(expected[name]):
            raise DataError(f"{folder} and {first} expect other answers to {task} '{name}'.")


def _recalls(answers: Sequence[Prediction]) -> np.ndarray:
    items, relevant, _ = ranked_lists(answers)
    return recall_at_k(hits(items, relevant), (relevant >= 0).sum(dim=1), k=DEPTH).numpy()


def _semantic_id_recall(one: Prediction) -> float:
    return float(np.mean([0 <= rank < DEPTH for rank in one.semantic_id_ranks]))
