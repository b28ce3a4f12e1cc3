"""Fusion of two embeddings per item, one from search and one from recommendation."""

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
    """Fuse embeddings by concatenation: normalize both, concatenate, normalize again.

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
    """Fuse embeddings by truncated SVD: reduce both spaces to ``dim`` dimensions, then combine.

    The singular vectors of each space are in descending order of singular value. With ``sum``,
    dimension d of one space is added to dimension d of the other, so the arbitrary signs of the
    singular vectors change the result. The signs are set so that the entry of largest magnitude of
    each right singular vector is positive.

    Args:
        first: Embeddings of one space; normalized before the SVD.
        second: Embeddings of the other space, treated alike.
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
