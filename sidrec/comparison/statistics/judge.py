"""Evaluation of tested systems: figures, intervals, tests and the Pareto front, as plain types."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sidrec.comparison.plan.comparison_settings import ReportSettings
from sidrec.comparison.statistics.pareto import contributions, hypervolume, pareto_mask
from sidrec.comparison.statistics.significance import (
    Difference,
    Groups,
    bootstrap_means,
    difference_of_means,
    holm,
    inflation,
    share_of_draws,
    spread_over_seeds,
)
from sidrec.comparison.statistics.tested_runs import System, groups_of
from sidrec.figures import harmonic_mean
from sidrec.types import TASKS, Task

_AT_5_AND_10 = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
_SLICES = (
    *("recall@30_head", "recall@30_torso", "cold_start", "mrr@30"),
    *_AT_5_AND_10,
    *(f"{part}_{name}" for part in ("prior", "t5") for name in (*_AT_5_AND_10, "recall@30")),
    "t5_gain_nats",
)
Requests = Mapping[Task, Sequence[str]]


def evaluate_systems(
    systems: Sequence[System], requests: Requests, settings: ReportSettings
) -> dict[str, Any]:
    """Return figures, intervals, tests and the Pareto front of all systems.

    Args:
        systems: Rows of the table, in its order.
        requests: Requests that all systems answered, per task.
        settings: Reference, family error, bootstrap draws and seed.

    Returns:
        ``systems``: one mapping per row; ``front``, ``hypervolume``, ``num_tests``,
        ``smallest_difference`` and ``num_requests``. What cannot be computed is None.
    """
    groups = {task: groups_of(systems, task, requests.get(task, ())) for task in TASKS}
    rows = [_row(system, requests, groups, settings) for system in systems]
    _add_front(rows, systems, requests, groups, settings)
    tests = _add_tests(rows, systems, requests, groups, settings)
    return {
        "systems": rows,
        "front": [row["name"] for row in rows if row["on_front"]],
        "hypervolume": hypervolume(_points(rows)),
        "num_tests": len(tests),
        "smallest_difference": _smallest_differences(tests, settings),
        "num_requests": {task: len(requests.get(task, ())) for task in TASKS},
        "num_groups": {task: len(np.unique(groups[task])) for task in TASKS},
        "num_requests_of_slices": _slice_counts(systems),
    }


def _row(
    system: System, requests: Requests, groups: Mapping[Task, Groups], settings: ReportSettings
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for task in TASKS:
        if system.has_answers(task) and requests.get(task):
            figures |= _task_figures(system, task, requests[task], groups[task], settings)
    return {
        "name": system.name,
        "kind": system.kind,
        "seeds": [run.seed for run in system.runs],
        "missing": dict(system.missing),
        "figures": figures,
        "harmonic_mean": _harmonic(system, figures),
        "ids": _ids_figures(system),
        "runs": [str(run.folder) for run in system.runs],
        "commands": list(system.commands),
    }


def _task_figures(
    system: System, task: Task, requests: Sequence[str], groups: Groups, settings: ReportSettings
) -> dict[str, Any]:
    values = system.values(task, requests)
    figures: dict[str, Any] = {f"{task}/recall@30": _figure(values.mean(axis=1))}
    if system.seeds_are_known:
        own = difference_of_means(values, np.zeros_like(values[:1]), groups)
        ends = own.interval(settings.interval)
        figures[f"{task}/recall@30"]["interval"] = [_number(end) for end in ends]
    by_id = system.semantic_id_values(task, requests)
    if by_id is not None:
        figures[f"{task}/sid_recall@30"] = _figure(by_id.mean(axis=1))
        figures[f"{task}/inflation"] = _number(inflation(by_id.mean(), values.mean()))
    for name in _SLICES:
        own_figures = [run.figures.get(f"{task}/{name}") for run in system.runs]
        known = np.array([value for value in own_figures if value is not None], float)
        if len(known):  # a slice without requests has no figure
            figures[f"{task}/{name}"] = _figure(known)
    return figures


def _figure(by_seed: np.ndarray) -> dict[str, Any]:
    spread = spread_over_seeds(by_seed[:, None])
    return {
        "mean": _number(spread.mean),
        "deviation": _number(spread.deviation),
        "values": [float(value) for value in by_seed],
    }


def _harmonic(system: System, figures: dict[str, Any]) -> dict[str, Any] | None:
    recalls = [figures.get(f"{task}/recall@30") for task in TASKS]
    if None in recalls:
        return None
    pairs = zip(*(recall["values"] for recall in recalls if recall), strict=True)
    own = np.array([harmonic_mean(pair) for pair in pairs])
    spread = spread_over_seeds(own[:, None])
    return {"mean": _number(spread.mean), "deviation": _number(spread.deviation)}


def _ids_figures(system: System) -> dict[str, float]:
    """Return figures of the Semantic IDs, averaged over seeds: collisions, error, perplexities."""
    keys = sorted({key for run in system.runs for key in run.figures if key.startswith("ids/")})
    return {
        key: float(np.mean([run.figures.get(key, math.nan) for run in system.runs])) for key in keys
    }


def _points(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    def of(row: dict[str, Any], task: Task) -> float:
        figure = row["figures"].get(f"{task}/recall@30")
        return math.nan if figure is None else float(figure["mean"])

    return np.array([[of(row, task) for task in TASKS] for row in rows]).reshape(-1, len(TASKS))


def _add_front(
    rows: list[dict[str, Any]],
    systems: Sequence[System],
    requests: Requests,
    groups: Mapping[Task, Groups],
    settings: ReportSettings,
) -> None:
    """Add membership of the front, its share of the draws, and the hypervolume contribution."""
    points = _points(rows)
    members, areas = pareto_mask(points), contributions(points)
    both = [n for n, point in enumerate(points) if not np.isnan(point).any()]
    shares = dict.fromkeys(range(len(rows)), 0.0)
    if both:
        draws = np.stack([_draws(systems[n], requests, groups, settings) for n in both], axis=1)
        shares |= dict(zip(both, share_of_draws(draws, pareto_mask), strict=True))
    for n, row in enumerate(rows):
        row["on_front"], row["front_share"] = bool(members[n]), float(shares[n])
        row["contribution"] = float(areas[n])


def _draws(
    system: System, requests: Requests, groups: Mapping[Task, Groups], settings: ReportSettings
) -> np.ndarray:
    parts = [
        bootstrap_means(
            system.values(task, requests[task]),
            groups[task],
            num_draws=settings.num_bootstrap,
            seed=settings.seed,
        )
        for task in TASKS
    ]
    return np.stack(parts, axis=1)  # [draw, task]


class _Test(NamedTuple):
    row: dict[str, Any]
    task: Task
    outcome: Difference


def _add_tests(
    rows: list[dict[str, Any]],
    systems: Sequence[System],
    requests: Requests,
    groups: Mapping[Task, Groups],
    settings: ReportSettings,
) -> list[_Test]:
    """Test every system against the reference in every task; all tests form one family."""
    reference = next((one for one in systems if one.name == settings.reference), None)
    found: list[_Test] = []
    for row, system in zip(rows, systems, strict=True):
        row["tests"] = {}
        for task in TASKS:
            if reference is None or system is reference or not requests.get(task):
                continue
            if not (system.has_answers(task) and reference.has_answers(task)):
                continue
            if system.seeds_are_known and reference.seeds_are_known:
                outcome = difference_of_means(
                    system.values(task, requests[task]),
                    reference.values(task, requests[task]),
                    groups[task],
                )
                found.append(_Test(row, task, outcome))
    found = [test for test in found if not math.isnan(test.outcome.p_value)]
    adjusted = holm([test.outcome.p_value for test in found])
    for (row, task, outcome), p in zip(found, adjusted, strict=True):
        row["tests"][task] = {
            "difference": outcome.mean,
            "interval": list(outcome.interval(settings.interval)),
            "p": outcome.p_value,
            "p_holm": p,
            "significant": p < settings.family_error,
        }
    return found


def _smallest_differences(
    tests: Sequence[_Test], settings: ReportSettings
) -> dict[str, dict[str, float]]:
    """Return per task the median over tests of the smallest significant difference.

    ``alone`` is for a single test at the error of the family, ``in_family`` for the first step of
    Holm's correction, which the smallest p-value of all tests must pass.
    """
    levels = {
        "alone": settings.family_error,
        "in_family": settings.family_error / max(1, len(tests)),
    }
    return {
        task: {
            name: float(np.median([one.outcome.smallest_significant(level) for one in own]))
            for name, level in levels.items()
        }
        for task in TASKS
        if (own := [one for one in tests if one.task == task])
    }


def _slice_counts(systems: Sequence[System]) -> dict[str, int]:
    """Return the number of requests in each slice, which is the same for all runs."""
    counts: dict[str, int] = {}
    for system in systems:
        for run in system.runs:
            for key, value in run.figures.items():
                if "/num_requests_" in key:
                    counts[key] = int(value)
    return counts


def _number(value: Any) -> Any:  # noqa: ANN401
    """Return a figure for JSON, which has no NaN."""
    return None if value is None or math.isnan(value) else float(value)
