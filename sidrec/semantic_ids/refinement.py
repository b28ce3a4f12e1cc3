"""Codebooks of all levels, fitted once more to the codes that items ended up with."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import gather_objects, sum_over_ranks
from sidrec.semantic_ids.kmeans import GRID_BITS, sums_by_code
from sidrec.semantic_ids.rows import CHUNK_ROWS, grid_unit
from sidrec.semantic_ids.rq_codebooks import FittedRqKMeans


def refined(
    vectors: Float[Tensor, "item dim"], codes: Int[Tensor, "item level"], fitted: FittedRqKMeans
) -> FittedRqKMeans:
    """Move each centroid to where its items lose least, the other levels held; last level first.

    A level is fitted before anyone knows what later levels will add; this tells it. While the
    codes stay, no step raises the error. Collective; exact over ranks as ``k_means`` is. A code
    without items stays where it is.

    Args:
        vectors: This rank's rows, cut by ``rows.block_of_rank``.
        codes: Their codes, all levels.
        fitted: What made the codes; its stored lengths are kept.

    Source:
        Block coordinate descent on the least squares of additive quantization (Babenko and
        Lempitsky 2014, https://doi.org/10.1109/CVPR.2014.124).
    """
    largest = 0.0
    for start in range(0, len(vectors), CHUNK_ROWS):
        least, most = vectors[start : start + CHUNK_ROWS].aminmax()
        largest = max(largest, abs(least.item()), abs(most.item()))
    largest = max(gather_objects(largest))
    for level in reversed(range(len(fitted.codebooks))):
        sums, weights = _errors_by_code(vectors, codes, fitted, level, largest)
        step = torch.where(weights > 0, sums / weights.clamp(min=1e-30), 0.0)
        books = list(fitted.codebooks)
        books[level] = (books[level] + step).float()
        fitted = replace(fitted, codebooks=tuple(books))
    return fitted


def _errors_by_code(
    vectors: Tensor, codes: Tensor, fitted: FittedRqKMeans, level: int, largest: float
) -> tuple[Tensor, Tensor]:
    """Return per code the sum of error times length, and of length squared, of its items."""
    pairs = zip(fitted.codebooks, fitted.lengths, strict=True)
    decoded = sum(book.abs().max().item() * lengths.max().item() for book, lengths in pairs)
    most = fitted.lengths[level].max().item()
    unit = grid_unit(max((largest + decoded) * most, most * most) * CHUNK_ROWS, GRID_BITS)
    num_codes, dim = fitted.codebooks[level].shape
    totals = torch.zeros((num_codes, dim + 1), dtype=torch.float64, device=vectors.device)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].float()
        part = codes[start : start + CHUNK_ROWS]
        before = part[:, level - 1] if level else torch.zeros_like(part[:, 0])
        length = fitted.lengths[level][before].unsqueeze(1)
        error = (chunk - fitted.decode(part)) * length
        sums, _ = sums_by_code(torch.cat([error, length * length], 1), part[:, level], num_codes)
        totals += sums.double().div_(unit).round_()
    totals = sum_over_ranks(totals) * unit
    return totals[:, :-1], totals[:, -1:]
