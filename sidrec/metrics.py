"""Ranking metrics: functions of hits and grades, and their means over requests and ranks."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection

_UNIT = 1 << 36  # integer unit of sums of figures in [0, 1], which are exact in any order


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


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row column"]:
    """Stack rows of different lengths, at least one column wide; -1 pads."""
    width = max((len(row) for row in rows), default=0) or 1
    return torch.tensor(
        [[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long
    ).view(len(rows), width)
