"""Ranking metrics, and the flat dictionary of figures that a run reports."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from sidrec.types import TASKS, Task

_CHUNK = 1024  # requests per chunk
_DEEPEST = 30  # deepest rank of any metric
_HEAD_FRACTION = 0.01
_UNIT = 1 << 36  # integer unit of sums of figures in [0, 1], which are exact in any order

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


def gains(
    items: Int[Tensor, "request rank"],
    relevant: Int[Tensor, "request answer"],
    grades: Int[Tensor, "request answer"],
) -> Int[Tensor, "request rank"]:
    """Return the grade of the right answer at each rank, each answer at its first rank only.

    Args:
        items: item_index, best first; -1 pads.
        relevant: Distinct item_index of the right answers; -1 pads.
        grades: Relevance grade of each right answer, 1 or more.

    Returns:
        The grades; 0 at ranks without a right answer.
    """
    same = (items[:, :, None] == relevant[:, None, :]) & (relevant >= 0)[:, None, :]
    return ((same & (same.cumsum(dim=1, dtype=torch.int16) == 1)) * grades[:, None, :]).sum(dim=2)


def hits(
    items: Int[Tensor, "request rank"], relevant: Int[Tensor, "request answer"]
) -> Bool[Tensor, "request rank"]:
    """Mark the ranks with a right answer of any grade, see :func:`gains`."""
    return gains(items, relevant, torch.ones_like(relevant)) > 0


def recall_at_k(
    hit: Bool[Tensor, "request rank"], num_relevant: Int[Tensor, " request"], *, k: int
) -> Float64[Tensor, " request"]:
    """Return the fraction of the right answers among the first ``k``; NaN if there are none.

    Args:
        hit: Hits from :func:`hits`.
        num_relevant: Right answers of each request, found or not.
        k: Cut-off, in items, at least 1. A shorter list counts as it is.

    Example:
        >>> recall_at_k(torch.tensor([[False, True, True]]), torch.tensor([4]), k=2)
        tensor([0.2500], dtype=torch.float64)
    """
    return hit[:, :k].sum(dim=1).double() / num_relevant


def ndcg_at_k(
    gain: Int[Tensor, "request rank"], grades: Int[Tensor, "request answer"], *, k: int
) -> Float64[Tensor, " request"]:
    """Return the discounted gain over that of a perfect list; NaN if nothing is relevant.

    The gain of an item is its grade, the discount is ``1 / log2(rank + 1)``, and the perfect list
    holds the right answers by falling grade: nDCG@k of trec_eval.

    Args:
        gain: Gains from :func:`gains`.
        grades: Grades of each request's right answers, found or not; 0 pads.
        k: Cut-off, in items, at least 1. A shorter list counts as it is.
    """
    discount = 1 / torch.arange(2, k + 2, device=gain.device).double().log2()
    found = (gain[:, :k] * discount[: gain.shape[1]]).sum(dim=1)
    best = grades.sort(dim=1, descending=True).values[:, :k]
    ideal = (best * discount[: best.shape[1]]).cumsum(dim=1)[:, -1]
    return found / ideal


def mrr_at_k(hit: Bool[Tensor, "request rank"], *, k: int) -> Float64[Tensor, " request"]:
    """Return one over the rank of the first right answer; 0 if the first ``k`` hold none."""
    rank = torch.arange(1, min(k, hit.shape[1]) + 1, device=hit.device).double()
    none = torch.zeros(len(hit), 1, dtype=torch.float64, device=hit.device)
    return torch.cat([none, hit[:, :k] / rank], dim=1).amax(dim=1)


class _RankingMetric(Metric):
    """Mean over requests of a ranking metric; requests without a right answer are skipped.

    Its states are a sum and a count, so ranks reduce two integers.

    Args:
        k: Cut-off, in items, at least 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        self.k = k
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        items: Int[Tensor, "request rank"],
        relevant: Int[Tensor, "request answer"],
        grades: Int[Tensor, "request answer"] | None = None,
    ) -> None:
        """Add a batch of lists.

        Args:
            items: item_index, best first; -1 pads.
            relevant: item_index of the right answers; -1 pads.
            grades: Grade of each right answer, 0 pads; None: all are 1.
        """
        grades = (relevant >= 0).long() if grades is None else grades
        figures = self._figures(gains(items, relevant, grades), grades)[(grades > 0).any(dim=1)]
        self.total += (figures * _UNIT).round().long().sum()
        self.count += len(figures)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the mean over all requests of all ranks; NaN without requests."""
        return self.total.double() / (self.count.double() * _UNIT)

    def _figures(
        self, gain: Int[Tensor, "request rank"], grades: Int[Tensor, "request answer"]
    ) -> Float64[Tensor, " request"]:
        raise NotImplementedError


class Recall(_RankingMetric):
    """Recall@k of ranked items, see :func:`recall_at_k`."""

    def _figures(
        self, gain: Int[Tensor, "request rank"], grades: Int[Tensor, "request answer"]
    ) -> Float64[Tensor, " request"]:
        return recall_at_k(gain > 0, (grades > 0).sum(dim=1), k=self.k)


class NDCG(_RankingMetric):
    """nDCG@k of ranked items, see :func:`ndcg_at_k`."""

    def _figures(
        self, gain: Int[Tensor, "request rank"], grades: Int[Tensor, "request answer"]
    ) -> Float64[Tensor, " request"]:
        return ndcg_at_k(gain, grades, k=self.k)


class MRR(_RankingMetric):
    """MRR@k of ranked items, see :func:`mrr_at_k`."""

    def _figures(
        self, gain: Int[Tensor, "request rank"], grades: Int[Tensor, "request answer"]
    ) -> Float64[Tensor, " request"]:
        del grades
        return mrr_at_k(gain > 0, k=self.k)


def ranking_metrics() -> MetricCollection:
    """Return the validation metrics: recall@5, @10, @30, ndcg@5, @10 and mrr@30."""
    each: dict[str, Metric | MetricCollection] = {
        **{f"recall@{k}": Recall(k) for k in (5, 10, 30)},
        **{f"ndcg@{k}": NDCG(k) for k in (5, 10)},
        "mrr@30": MRR(30),
    }
    # Automatic groups would form from states that are equal by chance.
    metrics = MetricCollection(each, compute_groups=False)
    nothing = torch.empty(0, 1, dtype=torch.long)
    metrics.update(nothing, nothing)  # a rank without requests takes part in the reduction
    return metrics


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


def evaluate(predictions: Iterable[Prediction], popularity: Int[Tensor, " item"]) -> Figures:
    """Compute the flat figures of ``metrics.json``.

    Predictions may come from any number of processes in any order. A request that appears twice
    (padding of a distributed sampler) counts once, and sums are exact, so figures are equal to the
    last bit. Requests without a right answer are counted, not scored.

    Args:
        predictions: Answers of one split.
        popularity: Train interactions of each item; its length is the size of the catalogue.

    Returns:
        For each task ``T`` with requests: ``T/recall@5``, ``@10``, ``@30``, ``T/ndcg@5``,
        ``@10``, ``T/mrr@30``, with Semantic IDs ``T/sid_recall@10`` and ``T/sid_recall@30``;
        ``T/recall@30_answerable`` without the ``T/num_unanswerable`` requests whose right answers
        are all in the excluded history;
        ``T/recall@30_head`` over right answers among the 1 % most popular train items,
        ``T/recall@30_torso`` over all others, and ``T/cold_start``, recall@30 over right answers
        without a train interaction; the number of requests behind each as ``T/num_requests``,
        ``T/num_requests_head``, ``_torso``, ``_cold_start``, and ``T/num_without_answer``. A
        figure without requests is left out; its count is 0. ``decoding/valid_fraction``: fraction
        of the returned items that exist and are not repetitions; ``decoding/found_fraction``:
        fraction that the search found, left out where items lack scores (backfilled items count
        for recall but not for ``sid_recall``); ``decoding/list_length``: mean number of returned
        items.
    """
    distinct = {(one.task, one.request_id): one for one in predictions}
    figures: Figures = {}
    for task in TASKS:
        own = [one for (of, _), one in distinct.items() if of == task]
        if own:
            figures |= {f"{task}/{key}": value for key, value in _task(own, popularity).items()}
    return figures | _decoding(list(distinct.values()), len(popularity))


def _task(predictions: list[Prediction], popularity: Int[Tensor, " item"]) -> Figures:
    head = head_items(popularity)
    values: dict[str, list[Tensor]] = {}
    asked = [one for one in predictions if one.relevant]
    for start in range(0, len(asked), _CHUNK):
        chunk = asked[start : start + _CHUNK]
        items, relevant, grades = ranked_lists(chunk)
        parts = _whole(items, relevant, grades) | _parts(items, relevant, popularity, head)
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
            figures[f"num_requests_{_PARTS[key]}"] = len(scored)
        if scored:
            figures[key] = math.fsum(scored) / len(scored)
    return figures


_PARTS = {"recall@30_head": "head", "recall@30_torso": "torso", "cold_start": "cold_start"}


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
    popularity: Int[Tensor, " item"],
    head: Bool[Tensor, " item"],
) -> dict[str, Tensor]:
    parts = {}
    for key, member in zip(_PARTS, (head, ~head, popularity == 0), strict=True):
        own = torch.where(member[relevant.clamp(min=0)], relevant, -1)
        parts[key] = recall_at_k(hits(items, own), (own >= 0).sum(dim=1), k=30)
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


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row column"]:
    """Stack rows of different lengths, at least one column wide; -1 pads."""
    width = max((len(row) for row in rows), default=0) or 1
    return torch.tensor(
        [[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long
    ).view(len(rows), width)
