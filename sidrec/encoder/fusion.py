"""One vector per item from two: what search learned beside what recommendation learned."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import ConfigError

Combine = Literal["sum", "concat"]


def fused_concat(
    first: Float[Tensor, "item dim"], second: Float[Tensor, "item other"]
) -> Float[Tensor, "item both"]:
    """Put both vectors side by side, each of length 1, and scale the result to length 1.

    The squared distance of two items is then the mean of their squared distances in both spaces.

    Source:
        Penha et al. 2025 (arXiv 2508.10478), "Fused concat".
    """
    return F.normalize(torch.cat([_unit(first), _unit(second)], dim=1), dim=1)


def fused_svd(
    first: Float[Tensor, "item dim"],
    second: Float[Tensor, "item other"],
    *,
    dim: int,
    combine: Combine,
) -> Float[Tensor, "item fused"]:
    """Bring both spaces to ``dim`` dimensions by truncated SVD, then combine them.

    The singular vectors of each space are ordered by how much of it they hold, and dimension d of
    the one is added to dimension d of the other. Their signs are arbitrary; they are set so that
    the entry of largest magnitude of each right singular vector is positive, and with ``sum``
    they change the result.

    Args:
        first: Of one space; scaled to length 1 first.
        second: Of the other.
        dim: Dimensions to keep.
        combine: ``sum`` as in the paper, ``concat`` as in its authors' blog.

    Returns:
        Vectors of length 1.

    Raises:
        ConfigError: If a space has fewer than ``dim`` dimensions, or fewer items.

    Source:
        Penha et al. 2025 (arXiv 2508.10478), "Fused SVD".
    """
    parts = [_reduced(_unit(vectors), dim=dim) for vectors in (first, second)]
    fused = parts[0] + parts[1] if combine == "sum" else torch.cat(parts, dim=1)
    return F.normalize(fused, dim=1)


def _reduced(vectors: Float[Tensor, "item dim"], *, dim: int) -> Float[Tensor, "item kept"]:
    if not 1 <= dim <= min(vectors.shape):
        raise ConfigError(
            f"The fused dimension {dim} must lie between 1 and {min(vectors.shape)}, the smaller "
            f"of items and dimensions of a space of shape {tuple(vectors.shape)}."
        )
    # the Gram matrix is dim x dim: no factor of the size of the catalogue is computed
    gram = vectors.double().T @ vectors.double()
    values, right = torch.linalg.eigh(gram)
    right = right[:, values.argsort(descending=True, stable=True)[:dim]]
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    reduced: Tensor = vectors.double() @ (right * largest.sign())
    return reduced.float()


def _unit(vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "item dim"]:
    return F.normalize(vectors.float(), dim=1)
