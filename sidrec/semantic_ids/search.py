"""The nearest centroid of each row by float32 products, a cache-full of scores at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_SCORES_IN_CACHE = 1 << 18  # scores that the processor's cache holds while they are searched
_SEARCH_WIDTH = 32  # codes of which the least score is found at once


def codes_by_float32(
    rows: Float[Tensor, "row dim"], centroids: Float[Tensor, "code dim"]
) -> Int[Tensor, " row"]:
    """Return the code of the nearest centroid of each row; ties: the lowest code."""
    squares = centroids.square().sum(dim=1)
    none = torch.empty(0, dtype=torch.int64, device=rows.device)
    found = (
        _column_of_least(torch.addmm(squares, part, centroids.T, alpha=-2))
        for part in parts_in_cache(rows, len(centroids))
    )
    return torch.cat([none, *found])


def parts_in_cache(rows: Float[Tensor, "row dim"], num_codes: int) -> Iterator[Tensor]:
    """Cut rows so that the scores of a part stay in the cache; on a GPU they are one part."""
    step = len(rows) if rows.is_cuda else max(64, _SCORES_IN_CACHE // num_codes)
    for start in range(0, len(rows), max(step, 1)):
        yield rows[start : start + step]


def _column_of_least(scores: Tensor) -> Tensor:
    """Return ``scores.argmin(dim=1)``, first over groups: torch finds no index in SIMD."""
    num_rows, num_codes = scores.shape
    if scores.is_cuda or num_codes % _SEARCH_WIDTH or num_codes == _SEARCH_WIDTH:
        return scores.min(dim=1).indices
    num_groups = num_codes // _SEARCH_WIDTH
    groups = scores.view(num_rows * num_groups, _SEARCH_WIDTH)
    group = groups.amin(dim=1).view(num_rows, num_groups).min(dim=1).indices
    own = torch.arange(0, len(groups), num_groups, device=scores.device).add_(group)
    return F.embedding(own, groups).min(dim=1).indices.add_(group, alpha=_SEARCH_WIDTH)
