"""Ranked lists of all systems side by side for some requests, with titles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidrec.comparison.statistics.tested_runs import System
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.types import TASKS, Request, Task

SHOWN = 10  # items per list
_SHOWN_HISTORY = 8


def side_by_side(
    systems: Sequence[System],
    requests: Mapping[Task, Sequence[str]],
    corpus: Corpus,
    *,
    per_task: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the lists of each system's first run for randomly drawn requests.

    The draw does not depend on the answers.

    Args:
        systems: Rows of the table.
        requests: Requests that all systems answered.
        corpus: Source of titles, queries and histories.
        per_task: Requests per task; fewer if there are fewer.
        seed: Seed of the draw.
    """
    titles = corpus.item_titles()
    asked = {
        "search": search_requests(corpus, "test"),
        "recommendation": recommendation_requests(corpus, "test"),
    }
    shown: list[dict[str, Any]] = []
    for task in TASKS:
        names = list(requests.get(task, ()))
        size = min(per_task, len(names))
        if not size:
            continue
        chosen = np.random.default_rng(seed).choice(len(names), size, replace=False)
        wanted = {names[row] for row in chosen}
        shown += [_one(one, systems, titles) for one in asked[task] if one.request_id in wanted]
    return shown


def _one(request: Request, systems: Sequence[System], titles: list[str]) -> dict[str, Any]:
    relevant = set(request.relevant)
    lists = {}
    for system in systems:
        if not system.has_answers(request.task):
            continue
        answer = system.runs[0].answers[request.task][request.request_id]
        rank = next((n for n, item in enumerate(answer.items, 1) if item in relevant), None)
        lists[system.name] = {
            "rank": rank,
            "items": [
                {"title": titles[item], "hit": item in relevant} for item in answer.items[:SHOWN]
            ],
        }
    return {
        "task": request.task,
        "request": request.request_id,
        "query": request.query,
        "history": [titles[item] for item in request.history[-_SHOWN_HISTORY:]],
        "history_length": len(request.history),
        "relevant": [titles[item] for item in request.relevant],
        "lists": lists,
    }
