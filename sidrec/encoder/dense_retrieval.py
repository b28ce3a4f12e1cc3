"""Dense retrieval: what the embeddings can find before Semantic IDs give part of it away."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_rows, rank_and_world_size
from sidrec.types import Request

_SCORES_AT_ONCE = 1 << 26


def mean_history(
    items: Float[Tensor, "item dim"], histories: Sequence[Sequence[int]], *, most_recent: int
) -> Float[Tensor, "request dim"]:
    """Return the mean embedding of the last items of each history; zero for an empty one.

    Args:
        items: One embedding per item_index.
        histories: item_index, oldest first.
        most_recent: How many items count, from the end.
    """
    recent = [list(history)[-most_recent:] for history in histories]
    flat = torch.tensor([item for history in recent for item in history], device=items.device)
    lengths = torch.tensor([len(history) for history in recent], device=items.device)
    row = torch.repeat_interleave(torch.arange(len(recent), device=items.device), lengths.long())
    total = items.new_zeros(len(recent), items.shape[1]).index_add_(0, row, items[flat.long()])
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

    Every rank brings its own requests (``own_slice``) and gets the figure of all of them.

    Args:
        questions: One vector per request, on the device of ``items``.
        items: One vector per item.
        requests: Those with no relevant item are left out of the mean.
        ks: List lengths.
        exclude_history: Items of a request's own history are no candidates.

    Returns:
        K → mean over requests of the share of relevant items among the first K; NaN when no
        request on any rank has a relevant item.
    """
    at_once = max(1, _SCORES_AT_ONCE // len(items))
    shares = [torch.empty(0, len(ks), dtype=torch.float64, device=items.device)]
    for first in range(0, len(requests), at_once):
        part = [requests[row] for row in range(first, min(first + at_once, len(requests)))]
        asked = questions[first : first + len(part)]
        shares.append(_shares(asked, items, part, ks, exclude_history))
    all_shares = gather_rows(torch.cat(shares))
    counted = all_shares[~all_shares.isnan().any(dim=1)]
    return dict(zip(ks, counted.mean(dim=0).tolist(), strict=True))


def own_slice(requests: Sequence[Request]) -> list[Request]:
    """Return this rank's neighboring slice of the requests."""
    rank, world_size = rank_and_world_size()
    first, end = (len(requests) * r // world_size for r in (rank, rank + 1))
    return [requests[index] for index in range(first, end)]


def _shares(
    questions: Float[Tensor, "request dim"],
    items: Float[Tensor, "item dim"],
    requests: Sequence[Request],
    ks: Sequence[int],
    exclude_history: bool,
) -> Float[Tensor, "request k"]:
    """Return the share of each request's relevant items in the first K; NaN without any."""
    scores = questions @ items.T
    for row, request in enumerate(requests):
        if exclude_history:
            scores[row, list(request.history)] = -torch.inf
    longest = min(max(ks), scores.shape[1])
    best = torch.topk(scores, longest, dim=1).indices
    width = max(1, *(len(request.relevant) for request in requests))
    relevant = torch.tensor(
        [[*request.relevant] + [-1] * (width - len(request.relevant)) for request in requests],
        device=items.device,
    )
    found = (best[:, :, None] == relevant[:, None, :]).any(dim=2).double().cumsum(dim=1)
    count = (relevant >= 0).sum(dim=1, keepdim=True).double()
    at_k = found[:, [min(k, longest) - 1 for k in ks]]
    return torch.where(count > 0, at_k / count, torch.nan)
