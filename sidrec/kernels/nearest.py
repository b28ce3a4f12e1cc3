"""Nearest-centroid search with a bfloat16 prefilter.

Some processors multiply bfloat16 numbers twice as fast as float32. The search first multiplies
rounded numbers. A proven bound on the rounding error shows for which rows the nearest centroid is
certain; the other rows get float32 products. The codes equal those of ``nearest_float32``.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_SCORES_IN_CACHE = 1 << 18  # scores that fit into the processor's cache
_SCORES_ON_GPU = 1 << 28
_SEARCH_WIDTH = 32  # codes per group in the search for the least score


def nearest_float32(
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
    """Cut rows into parts whose scores fit into the processor's cache; on a GPU, into 1 GiB."""
    scores = _SCORES_ON_GPU if rows.is_cuda else _SCORES_IN_CACHE
    step = max(64, scores // num_codes)
    for start in range(0, len(rows), max(step, 1)):
        yield rows[start : start + step]


def _column_of_least(scores: Tensor) -> Tensor:
    """Return ``scores.argmin(dim=1)``, computed by groups: torch's argmin does not use SIMD."""
    num_rows, num_codes = scores.shape
    if scores.is_cuda or num_codes % _SEARCH_WIDTH or num_codes == _SEARCH_WIDTH:
        return scores.min(dim=1).indices
    num_groups = num_codes // _SEARCH_WIDTH
    groups = scores.view(num_rows * num_groups, _SEARCH_WIDTH)
    group = groups.amin(dim=1).view(num_rows, num_groups).min(dim=1).indices
    own = torch.arange(0, len(groups), num_groups, device=scores.device).add_(group)
    return F.embedding(own, groups).min(dim=1).indices.add_(group, alpha=_SEARCH_WIDTH)


_LOW_HALF = (1 << 16) - 1
_LEAST_DIM = _LEAST_CODES = 64  # for smaller codebooks float32 products are as fast
_COARSE_UNIT = 2.0**-8  # largest relative error of a number rounded to bfloat16
_UNIT = 2.0**-24  # relative error of a float32 operation
_TINY = 1e-30  # bound on the loss from products too small for float32
_SLACK = 1.02  # margin, because lower bounds subtract numbers rounded up to bfloat16


class Rounding(NamedTuple):
    """Rounding of rows to bfloat16.

    Attributes:
        lengths: Lengths of the rounded rows.
        errors: Lengths of the differences between rows and rounded rows.
    """

    lengths: Float[Tensor, " row"]
    errors: Float[Tensor, " row"]


class Bf16Prefilter(NamedTuple):
    """Codebook prepared for coarse products.

    Attributes:
        centroids: float32.
        factors: Right factor of the product with rows from ``_lengthened``. The product is half of
            a lower bound of the squared distance, less a term that all codes share.
        per_length: Half of the score's largest rounding error per unit of a rounded row's length,
            for each code.
        per_error: The same per unit of the row's own rounding error, for each code.
        always: Part of that bound that does not depend on row or code.
    """

    centroids: Float[Tensor, "code dim"]
    factors: Tensor
    per_length: Float[Tensor, " code"]
    per_error: Float[Tensor, " code"]
    always: float


def prefilter_pays(centroids: Float[Tensor, "code dim"]) -> bool:
    """Return whether the prefilter saves time on this device; it never changes a code."""
    num_codes, dim = centroids.shape
    is_large = num_codes >= _LEAST_CODES and dim >= _LEAST_DIM
    return is_large and centroids.device.type == "cpu" and _multiplies_bfloat16()


def prefilter_of(centroids: Float[Tensor, "code dim"]) -> Bf16Prefilter:
    """Prepare centroids for the prefilter; subtract their mean, which all distances share.

    Rounding moves a row by its ``errors`` and a centroid by ``moved``. By the Cauchy-Schwarz
    inequality their product moves by at most ``errors * |centroid| + lengths * moved``. Each sum
    of float32 numbers, in any order, here and in ``nearest_float32``, adds ``dim`` units of the
    product of both lengths; the factors 8 and 16 are generous bounds on these errors.
    """
    mean = centroids.mean(dim=0)
    centered = centroids - mean
    rounded = centered.bfloat16()
    length = centroids.norm(dim=1).max().item()
    units = (centroids.shape[1] + 8) * _UNIT
    per_length = (centered - rounded).norm(dim=1) + 8 * units * length
    per_error = centered.norm(dim=1) + 8 * units * length
    always = 16 * units * length * length + _TINY
    constants = centered.square().sum(dim=1) / 2 + centered @ mean - always
    columns = [*_in_three(constants), -_up(per_length), -_up(per_error)]
    factors = torch.cat([-rounded, torch.stack(columns, dim=1)], dim=1)
    factors = F.pad(factors, (0, _width(centroids.shape[1]) - factors.shape[1]))
    return Bf16Prefilter(centroids, factors.T, per_length, per_error, always)


def rounding_of(rows: Float[Tensor, "row dim"]) -> Rounding:
    """Return the rounding of rows to bfloat16."""
    lengths, errors = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    start = 0
    for part in parts_in_cache(rows, rows.shape[1]):
        rounded = part.bfloat16().float()
        block = slice(start, start + len(part))
        torch.linalg.vector_norm(rounded, dim=1, out=lengths[block])
        torch.linalg.vector_norm(rounded.sub_(part), dim=1, out=errors[block])
        start += len(part)
    return Rounding(lengths, errors)


def bf16_prefilter(
    rows: Float[Tensor, "row dim"], prefilter: Bf16Prefilter, rounding: Rounding
) -> tuple[Int[Tensor, " row"], int]:
    """Return the codes of the nearest centroids, and how many rows needed float32 products."""
    first, second = torch.empty_like(rounding.lengths), torch.empty_like(rounding.lengths)
    codes, start = torch.empty(len(rows), dtype=torch.int64), 0
    for part in parts_in_cache(rows, len(prefilter.centroids)):
        block = slice(start, start + len(part))
        longer = _lengthened(part, Rounding(rounding.lengths[block], rounding.errors[block]))
        bounds = torch.mm(longer, prefilter.factors).float()
        first[block], second[block], codes[block] = _two_least(bounds)
        start += len(part)
    off = rounding.lengths * prefilter.per_length.index_select(0, codes)
    off.addcmul_(rounding.errors, prefilter.per_error.index_select(0, codes))
    off.add_(prefilter.always).mul_(2 * _SLACK)  # from the lower bound to the upper one
    off.add_(first.abs().add_(second.abs()), alpha=_COARSE_UNIT)
    is_certain = second.sub_(first) > off  # False for NaN
    doubtful = is_certain.logical_not_().nonzero().flatten()
    if len(doubtful):
        codes[doubtful] = nearest_float32(rows.index_select(0, doubtful), prefilter.centroids)
    return codes, len(doubtful)


def nearest_codes(
    rows: Float[Tensor, "row dim"], centroids: Float[Tensor, "code dim"]
) -> Int[Tensor, " row"]:
    """Return the code of the nearest centroid of each row; ties: the lowest code."""
    if not prefilter_pays(centroids):
        return nearest_float32(rows, centroids)
    return bf16_prefilter(rows, prefilter_of(centroids), rounding_of(rows))[0]


def _lengthened(rows: Tensor, rounding: Rounding) -> Tensor:
    """Return the rounded rows followed by 1, 1, 1 and both lengths (see ``factors``)."""
    dim = rows.shape[1]
    longer = torch.zeros((len(rows), _width(dim)), dtype=torch.bfloat16)
    longer[:, :dim] = rows
    longer[:, dim : dim + 3] = 1
    longer[:, dim + 3] = _up(rounding.lengths)
    longer[:, dim + 4] = _up(rounding.errors)
    return longer


def _two_least(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two least numbers of each row and the column of the first; overwrites ``scores``.

    A bfloat16 number leaves half of a float32 empty, and the column is stored there. So the
    minimum, which torch finds fast, also gives the column. A row with a NaN returns NaN and an
    arbitrary column.
    """
    num_columns = scores.shape[1]
    packed = scores.view(torch.int32).bitwise_or_(torch.arange(num_columns, dtype=torch.int32))
    first = packed.view(torch.float32).amin(dim=1)
    column = first.view(torch.int32).bitwise_and(_LOW_HALF).clamp_(max=num_columns - 1).long()
    second = scores.scatter_(1, column.unsqueeze(1), math.inf).amin(dim=1)
    for numbers in (first, second):
        numbers.view(torch.int32).bitwise_and_(~_LOW_HALF)
    return first, second, column


def _width(dim: int) -> int:
    """Return the width of lengthened rows of ``dim``, padded to a multiple of 8."""
    return -(-(dim + 5) // 8) * 8


def _up(numbers: Tensor) -> Tensor:
    """Round to bfloat16, away from zero."""
    return (numbers * (1 + 2.0**-7)).bfloat16()


def _in_three(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split float32 numbers into three bfloat16 terms each."""
    first = numbers.bfloat16()
    second = (numbers - first).bfloat16()
    return first, second, (numbers - first - second).bfloat16()


@lru_cache(maxsize=1)
def _multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies in bfloat16 and sums in float32."""
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    has_kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (is_supported() and has_kernels):
        return False
    ones = torch.ones((_LEAST_CODES, 300), dtype=torch.bfloat16)
    return bool((ones @ ones.T == 300).all())  # sums in bfloat16 stay at 256
