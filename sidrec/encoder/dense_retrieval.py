"""Dense retrieval: recall of the embeddings alone, before Semantic IDs quantize them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import MetricCollection

from sidrec.corpus.cold_start import cold_start_requests
from sidrec.distributed import gather_objects, rank_and_world_size
from sidrec.figures import COLD_START
from sidrec.metrics import Recall, padded
from sidrec.types import Request, Task

_SCORES_AT_ONCE = 1 << 26


def mean_history(
    items: Float[Tensor, "item dim"], histories: Sequence[Sequence[int]], *, most_recent: int
) -> Float[Tensor, "request dim"]:
    """Return the mean embedding of the last items of each history; zero for an empty one.

    Args:
        items: One embedding per item_index.
        histories: item_index, oldest first.
        most_recent: Number of items that count, from the end.
    """
    recent = [list(history)[-most_recent:] for history in histories]
    flat = torch.tensor([item for history in recent for item in history], device=items.device)
    lengths = torch.tensor([len(history) for history in recent], device=items.device)
    if not len(flat):
        return items.new_zeros(len(recent), items.shape[1])
    starts = lengths.cumsum(dim=0) - lengths
    total: Tensor = F.embedding_bag(flat, items, starts, mode="sum")
    return total / lengths.clamp(min=1)[:, None]


def dense_recall(
    questions: Float[Tensor, "request dim"],
    items: Float[Tensor, "item dim"],
    requests: Sequence[Request],
    *,
    ks: Sequence[int],
    exclude_history: bool = True,
) -> dict[int, float]:
    """Return Recall@K of the nearest items by inner product, over the whole catalogue.

    Every rank passes its own requests (``own_slice``) and gets the mean over those of all ranks.

    Args:
        questions: One vector per request, on the device of ``items``.
        items: One vector per item.
        requests: Those with no relevant item are left out of the mean.
        ks: List lengths.
        exclude_history: Whether the items of a request's own history are left out of its
            candidates.

    Returns:
        K → mean over requests of the share of relevant items among the first K; NaN when no
        request on any rank has a relevant item.
    """
    at_once = max(1, _SCORES_AT_ONCE // len(items))
    recalls = MetricCollection({str(k): Recall(k) for k in ks}, compute_groups=False)
    recalls.to(items.device)
    for first in range(0, max(1, len(requests)), at_once):
        part = [requests[row] for row in range(first, min(first + at_once, len(requests)))]
        best = _nearest(questions[first : first + len(part)], items, part, max(ks), exclude_history)
        recalls.update(
            best, padded([tuple(dict.fromkeys(one.relevant)) for one in part]).to(items.device)
        )
    return {int(k): value.item() for k, value in recalls.compute().items()}


def recall_figures(
    task: Task,
    questions: Float[Tensor, "request dim"],
    items: Float[Tensor, "item dim"],
    requests: Sequence[Request],
    *,
    ks: Sequence[int],
    exclude_history: bool,
    cold: Bool[Tensor, " item"] | None = None,
) -> dict[str, float]:
    """Return ``TASK/recall@K`` of :func:`dense_recall`; K without requests are left out.

    With ``cold``, the cold-start items, also those of the right answers among them, and
    ``TASK/num_requests_cold_start``, as in :func:`sidrec.figures.evaluate`.
    """
    found = dense_recall(questions, items, requests, ks=ks, exclude_history=exclude_history)
    figures = {f"{task}/recall@{k}": value for k, value in found.items() if value == value}
    if cold is None:
        return figures
    rows, asked = cold_start_requests(requests, cold)
    found = dense_recall(questions[rows], items, asked, ks=ks, exclude_history=exclude_history)
    figures |= {f"{task}/{COLD_START[k]}": value for k, value in found.items() if value == value}
    return figures | {f"{task}/num_requests_cold_start": float(sum(gather_objects(len(rows))))}


def own_slice(requests: Sequence[Request]) -> list[Request]:
    """Return this rank's neighboring slice of the requests."""
    rank, world_size = rank_and_world_size()
    first, end = (len(requests) * r // world_size for r in (rank, rank + 1))
    return [requests[index] for index in range(first, end)]


def _nearest(
    questions: Float[Tensor, "request dim"],
    items: Float[Tensor, "item dim"],
    requests: Sequence[Request],
    num_nearest: int,
    exclude_history: bool,
) -> Int[Tensor, "request rank"]:
    """Return the nearest items, best first, outside each request's history if asked; -1 pads."""
    scores = questions @ items.T
    for row, request in enumerate(requests if exclude_history else ()):
        scores[row, list(request.history)] = -torch.inf
    best = torch.topk(scores, min(num_nearest, scores.shape[1]), dim=1)
    return torch.where(best.values == -torch.inf, -1, best.indices)
