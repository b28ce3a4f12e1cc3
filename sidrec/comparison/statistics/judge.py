"""From tested systems to what the report says: plain types, as ``report.json`` holds them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidrec.comparison.plan.settings import ReportSettings
from sidrec.comparison.statistics.pareto import contributions, hypervolume, on_front
from sidrec.comparison.statistics.significance import (
    bonferroni,
    bootstrap_means,
    inflation,
    interval_of,
    paired_tests,
    share_of_draws,
    spread_over_seeds,
)
from sidrec.comparison.statistics.tested_runs import System
from sidrec.metrics import harmonic_mean
from sidrec.types import TASKS, Task

_SLICES = ("recall@30_head", "recall@30_torso", "cold_start", "recall@10", "ndcg@10", "mrr@30")
Requests = Mapping[Task, Sequence[str]]


def judge(
    systems: Sequence[System], requests: Requests, settings: ReportSettings
) -> dict[str, Any]:
    """Return figures, intervals, tests and the front.

    Args:
        systems: Rows of the table, in its order.
        requests: Those that all systems answered, per task.
        settings: Reference, error of the family, draws, seed.

    Returns:
        ``systems``: one mapping per row; ``front``, ``hypervolume``, ``num_tests`` and
        ``num_requests``. What cannot be computed is None.
    """
    rows = [_row(system, requests, settings) for system in systems]
    _add_front(rows, systems, requests, settings)
    num_tests = _add_tests(rows, systems, requests, settings)
    points = _points(rows)
    return {
        "systems": rows,
        "front": [row["name"] for row in rows if row["on_front"]],
        "hypervolume": hypervolume(points),
        "num_tests": num_tests,
        "num_requests": {task: len(requests.get(task, ())) for task in TASKS},
        "num_requests_of_slices": _slice_counts(systems),
    }


def _row(system: System, requests: Requests, settings: ReportSettings) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for task in TASKS:
        if system.has_answers(task) and requests.get(task):
            figures |= _task_figures(system, task, requests[task], settings)
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
    system: System, task: Task, requests: Sequence[str], settings: ReportSettings
) -> dict[str, Any]:
    values = system.values(task, requests)
    figures: dict[str, Any] = {f"{task}/recall@30": _figure(values.mean(axis=1), values, settings)}
    by_id = system.semantic_id_values(task, requests)
    if by_id is not None:
        figures[f"{task}/sid_recall@30"] = _figure(by_id.mean(axis=1), by_id, settings)
        figures[f"{task}/inflation"] = _number(inflation(by_id.mean(), values.mean()))
    for name in _SLICES:
        own = [run.figures.get(f"{task}/{name}") for run in system.runs]
        known = np.array([value for value in own if value is not None], float)
        if len(known):  # a slice without requests has no figure
            figures[f"{task}/{name}"] = _figure(known, None, settings)
    return figures


def _figure(
    by_seed: np.ndarray, values: np.ndarray | None, settings: ReportSettings
) -> dict[str, Any]:
    spread = spread_over_seeds(by_seed[:, None])
    figure: dict[str, Any] = {
        "mean": _number(spread.mean),
        "deviation": _number(spread.deviation),
        "values": [float(value) for value in by_seed],
    }
    if values is not None:
        draws = bootstrap_means(values, num_draws=settings.num_bootstrap, seed=settings.seed)
        figure["interval"] = [_number(end) for end in interval_of(draws, level=settings.interval)]
    return figure


def _harmonic(system: System, figures: dict[str, Any]) -> dict[str, Any] | None:
    recalls = [figures.get(f"{task}/recall@30") for task in TASKS]
    if None in recalls:
        return None
    pairs = zip(*(recall["values"] for recall in recalls if recall), strict=True)
    own = np.array([harmonic_mean(pair) for pair in pairs])
    spread = spread_over_seeds(own[:, None])
    return {"mean": _number(spread.mean), "deviation": _number(spread.deviation)}


def _ids_figures(system: System) -> dict[str, float]:
    """Return mean figures of the Semantic IDs over seeds: collisions, error, perplexities."""
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
    settings: ReportSettings,
) -> None:
    """Add who is on the front, in which share of the draws, and what each one's area adds."""
    points = _points(rows)
    members, areas = on_front(points), contributions(points)
    both = [n for n, point in enumerate(points) if not np.isnan(point).any()]
    shares = dict.fromkeys(range(len(rows)), 0.0)
    if both:
        draws = np.stack([_draws(systems[n], requests, settings) for n in both], axis=1)
        shares |= dict(zip(both, share_of_draws(draws, on_front), strict=True))
    for n, row in enumerate(rows):
        row["on_front"], row["front_share"] = bool(members[n]), float(shares[n])
        row["contribution"] = float(areas[n])


def _draws(system: System, requests: Requests, settings: ReportSettings) -> np.ndarray:
    parts = [
        bootstrap_means(
            system.values(task, requests[task]),
            num_draws=settings.num_bootstrap,
            seed=settings.seed,
        )
        for task in TASKS
    ]
    return np.stack(parts, axis=1)  # [draw, task]


def _add_tests(
    rows: list[dict[str, Any]],
    systems: Sequence[System],
    requests: Requests,
    settings: ReportSettings,
) -> int:
    """Test every system against the reference in every task; the tests are one family."""
    reference = next((one for one in systems if one.name == settings.reference), None)
    found: list[tuple[dict[str, Any], Task, dict[str, Any]]] = []
    for row, system in zip(rows, systems, strict=True):
        row["tests"] = {}
        for task in TASKS:
            if reference is None or system is reference or not requests.get(task):
                continue
            if system.has_answers(task) and reference.has_answers(task):
                outcome = paired_tests(
                    system.values(task, requests[task]),
                    reference.values(task, requests[task]),
                    num_draws=settings.num_permutations,
                    seed=settings.seed,
                )
                found.append((row, task, outcome._asdict()))
    for kind in ("t_p", "permutation_p"):
        corrected = bonferroni([test[kind] for _, _, test in found])
        for (_, _, test), p in zip(found, corrected, strict=True):
            test[f"{kind}_corrected"] = p
    for row, task, test in found:
        worst = max(test["t_p_corrected"], test["permutation_p_corrected"])
        test["significant"] = bool(worst < settings.family_error)
        row["tests"][task] = {key: _number(value) for key, value in test.items()}
    return len(found)


def _slice_counts(systems: Sequence[System]) -> dict[str, int]:
    """Return how many requests stand behind each slice; all runs were asked the same."""
    counts: dict[str, int] = {}
    for system in systems:
        for run in system.runs:
            for key, value in run.figures.items():
                if "/num_requests_" in key:
                    counts[key] = int(value)
    return counts


def _number(value: Any) -> Any:  # noqa: ANN401
    """Return a figure for JSON, which knows no NaN."""
    if isinstance(value, bool):
        return value
    return None if value is None or math.isnan(value) else float(value)
