"""Flat dictionary of figures that a run reports, computed from predictions."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sidrec.metrics import gains, hits, mrr_at_k, ndcg_at_k, padded, recall_at_k
from sidrec.types import TASKS, Task

_CHUNK = 1024  # requests per chunk
_DEEPEST = 30  # deepest rank of any metric
_HEAD_FRACTION = 0.01

COLD_START = {5: "recall@5_cold_start", 10: "recall@10_cold_start", 30: "cold_start"}  # by cut-off

Figures = dict[str, int | float]


class Prediction(NamedTuple):
    """Answer to one request, with everything that a metric depends on.

    Attributes:
        request_id: Unique within its task.
        task: ``search`` or ``recommendation``.
        split: Origin of the request: ``valid``, ``test``, or empty for foreign requests.
        items: item_index, best first, no padding.
        scores: Score of each item; log-probabilities of a generator, in nats, and -inf for
            backfilled items that its search did not find.
        semantic_id_ranks: For each relevant item, the rank from 0 of its Semantic ID among the
            distinct Semantic IDs of the answer, -1 if absent; empty for systems without them.
        relevant: item_index of the right answers; empty if unknown.
        history_length: Items of the user's history; 0 for search.
        answerable: False if every right answer is in the excluded history.
        grades: Relevance grade of each of ``relevant``, 1 or more; empty: all 1.
    """

    request_id: str
    task: Task
    split: str
    items: tuple[int, ...]
    scores: tuple[float, ...]
    semantic_id_ranks: tuple[int, ...]
    relevant: tuple[int, ...]
    history_length: int
    answerable: bool = True
    grades: tuple[int, ...] = ()

    @property
    def all_grades(self) -> tuple[int, ...]:
        """Relevance grade of each of ``relevant``."""
        return self.grades or (1,) * len(self.relevant)


def ranked_lists(
    predictions: Sequence[Prediction],
) -> tuple[
    Int[Tensor, "request rank"], Int[Tensor, "request answer"], Int[Tensor, "request answer"]
]:
    """Return first items, distinct right answers and their grades; -1 pads, 0 pads the grades."""
    items = padded([one.items[:_DEEPEST] for one in predictions])
    graded = [dict(zip(one.relevant, one.all_grades, strict=True)) for one in predictions]
    grades = padded([tuple(one.values()) for one in graded]).clamp(min=0)
    return items, padded([tuple(one) for one in graded]), grades


def harmonic_mean(figures: Sequence[float]) -> float:
    """Return the harmonic mean of non-negative figures; 0 of none.

    A figure of 0 counts as 1e-9, so that the other figure still decides between two runs.

    >>> round(harmonic_mean([0.5, 0.25]), 4)
    0.3333
    """
    if not figures:
        return 0.0
    return len(figures) / sum(1 / max(figure, 1e-9) for figure in figures)


def validation_figures(
    figures: Mapping[str, float], *, trained: Collection[Task]
) -> dict[str, float]:
    """Return figures per task, and the means over tasks that choose checkpoints.

    ``harmonic_mean/F`` is the harmonic mean of figure ``F`` over the tasks in ``trained`` that have
    requests, since an untrained task does not show when to stop. ``recall_harmonic_mean`` is the
    harmonic mean of Recall@30, the default choice.

    >>> figures = {"search/recall@30": 0.5, "recommendation/recall@30": 0.001}
    >>> validation_figures(figures, trained=["search"])["recall_harmonic_mean"]
    0.5
    """
    means = {
        f"harmonic_mean/{name}": harmonic_mean(
            [figures[key] for task in trained if (key := f"{task}/{name}") in figures]
        )
        for name in dict.fromkeys([*(key.partition("/")[2] for key in figures), "recall@30"])
    }
    return {**figures, **means, "recall_harmonic_mean": means["harmonic_mean/recall@30"]}


def head_items(popularity: Int[Tensor, " item"]) -> Bool[Tensor, " item"]:
    """Mark the 1 % most popular items, rounded down, at least one; ties go to the lower index."""
    num_head = max(1, int(len(popularity) * _HEAD_FRACTION))
    order = torch.argsort(popularity, descending=True, stable=True)
    head = torch.zeros_like(popularity, dtype=torch.bool)
    head[order[:num_head]] = True
    return head & (popularity > 0)


def evaluate(
    predictions: Iterable[Prediction],
    popularity: Int[Tensor, " item"],
    *,
    cold: Bool[Tensor, " item"] | None = None,
) -> Figures:
    """Compute the flat figures of ``metrics.json``.

    Predictions may come from any number of processes in any order. A request that appears twice
    (padding of a distributed sampler) counts once, and sums are exact, so figures are equal to the
    last bit. Requests without a right answer are counted, not scored.

    Args:
        predictions: Answers of one split.
        popularity: Train interactions of each item; its length is the size of the catalogue.
        cold: Cold-start items, see ``cold_start_items``; None: those without a train interaction.

    Returns:
        For each task ``T`` with requests: ``T/recall@5``, ``@10``, ``@30``, ``T/ndcg@5``,
        ``@10``, ``T/mrr@30``, with Semantic IDs ``T/sid_recall@10`` and ``T/sid_recall@30``;
        ``T/recall@30_answerable`` without the ``T/num_unanswerable`` requests whose right answers
        are all in the excluded history;
        ``T/recall@30_head`` over right answers among the 1 % most popular train items,
        ``T/recall@30_torso`` over all others; ``T/recall@5_cold_start``, ``@10_cold_start`` and
        ``T/cold_start``, recall@30, over right answers that are cold-start items; the number of
        requests behind each as ``T/num_requests``, ``T/num_requests_head``, ``_torso``,
        ``_cold_start``, and ``T/num_without_answer``. A
        figure without requests is left out; its count is 0. ``decoding/valid_fraction``: fraction
        of the returned items that exist and are not repetitions; ``decoding/found_fraction``:
        fraction that the search found, left out where items lack scores (backfilled items count
        for recall but not for ``sid_recall``); ``decoding/list_length``: mean number of returned
        items.
    """
    distinct = {(one.task, one.request_id): one for one in predictions}
    head = head_items(popularity)
    members = {
        "head": head,
        "torso": ~head,
        "cold_start": popularity == 0 if cold is None else cold,
    }
    figures: Figures = {}
    for task in TASKS:
        own = [one for (of, _), one in distinct.items() if of == task]
        if own:
            figures |= {f"{task}/{key}": value for key, value in _task(own, members).items()}
    return figures | _decoding(list(distinct.values()), len(popularity))


def cold_start_line(figures: Mapping[str, int | float]) -> str | None:
    """Return the cold-start figures in one line; None if no right answer is a cold-start item.

    >>> cold_start_line({"search/num_requests_cold_start": 4, "search/cold_start": 0.25})
    'cold start: search recall@30 0.2500 over 4 requests'
    """
    parts = [
        f"{task} "
        + ", ".join(
            f"recall@{k} {figures[key]:.4f}"
            for k, name in COLD_START.items()
            if (key := f"{task}/{name}") in figures
        )
        + f" over {int(number)} requests"
        for task in TASKS
        if (number := figures.get(f"{task}/num_requests_cold_start", 0))
    ]
    return f"cold start: {'; '.join(parts)}" if parts else None


def _task(predictions: list[Prediction], members: Mapping[str, Bool[Tensor, " item"]]) -> Figures:
    values: dict[str, list[Tensor]] = {}
    asked = [one for one in predictions if one.relevant]
    for start in range(0, len(asked), _CHUNK):
        chunk = asked[start : start + _CHUNK]
        items, relevant, grades = ranked_lists(chunk)
        parts = _whole(items, relevant, grades) | _parts(items, relevant, members)
        parts |= _semantic_ids(chunk)
        answerable = torch.tensor([one.answerable for one in chunk])
        parts["recall@30_answerable"] = parts["recall@30"].where(answerable, torch.nan)
        for key, value in parts.items():
            values.setdefault(key, []).append(value[~value.isnan()])
    figures: Figures = {"num_requests": len(asked)}
    figures["num_without_answer"] = len(predictions) - len(asked)
    figures["num_unanswerable"] = sum(not one.answerable for one in asked)
    for key, tensors in values.items():
        scored = torch.cat(tensors).tolist()
        if key in _PARTS:
            figures[f"num_requests_{_PARTS[key][0]}"] = len(scored)
        if scored:
            figures[key] = math.fsum(scored) / len(scored)
    return figures


_PARTS = {  # recall over a part of the right answers: the part and the cut-off
    "recall@30_head": ("head", 30),
    "recall@30_torso": ("torso", 30),
    **{key: ("cold_start", k) for k, key in COLD_START.items()},
}


def _whole(
    items: Int[Tensor, "request rank"],
    relevant: Int[Tensor, "request answer"],
    grades: Int[Tensor, "request answer"],
) -> dict[str, Tensor]:
    gain, num_relevant = gains(items, relevant, grades), (relevant >= 0).sum(dim=1)
    hit = gain > 0
    return {
        **{f"recall@{k}": recall_at_k(hit, num_relevant, k=k) for k in (5, 10, 30)},
        **{f"ndcg@{k}": ndcg_at_k(gain, grades, k=k) for k in (5, 10)},
        "mrr@30": mrr_at_k(hit, k=30),
    }


def _parts(
    items: Int[Tensor, "request rank"],
    relevant: Int[Tensor, "request answer"],
    members: Mapping[str, Bool[Tensor, " item"]],
) -> dict[str, Tensor]:
    parts = {}
    for key, (part, k) in _PARTS.items():
        own = torch.where(members[part][relevant.clamp(min=0)], relevant, -1)
        parts[key] = recall_at_k(hits(items, own), (own >= 0).sum(dim=1), k=k)
    return parts


def _semantic_ids(chunk: list[Prediction]) -> dict[str, Tensor]:
    known = [one for one in chunk if one.semantic_id_ranks]
    if not known:
        return {}
    ranks = padded([one.semantic_id_ranks for one in known])
    num_relevant = torch.tensor([len(one.semantic_id_ranks) for one in known])
    return {
        f"sid_recall@{k}": ((ranks >= 0) & (ranks < k)).sum(dim=1).double() / num_relevant
        for k in (10, 30)
    }


def _decoding(predictions: list[Prediction], num_items: int) -> Figures:
    returned = sum(len(one.items) for one in predictions)
    valid = sum(len({i for i in one.items if 0 <= i < num_items}) for one in predictions)
    if not returned:
        return {}
    figures = {
        "decoding/valid_fraction": valid / returned,
        "decoding/list_length": returned / len(predictions),
    }
    scores = [score for one in predictions for score in one.scores]
    if len(scores) == returned and None not in scores:  # external tables may lack scores
        figures["decoding/found_fraction"] = sum(score > -math.inf for score in scores) / returned
    return figures
