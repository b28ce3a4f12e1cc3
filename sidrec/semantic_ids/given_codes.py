"""Codes that another program made -> Semantic-ID bundle, with the codebooks that fit them best."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import CollisionPolicy
from sidrec.semantic_ids.quality.id_metrics import quality_of
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.types import ItemEmbeddings, SemanticIdTable

NAME = "given"  # of the quantizer, in the bundle
_DIM = 128
_SEED = 0

Codebooks = tuple[Float[Tensor, "_ dim"], ...]


def bundle_of_codes(
    codes: Int[Tensor, "item level"],
    *,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    fingerprint: str,
    source: dict[str, Any],
    embeddings: ItemEmbeddings | None = None,
) -> SemanticIdBundle:
    """Build a bundle of given codes; each level has as many codes as its largest code needs.

    A generator reads item vectors too. Without ``embeddings`` an item's vector is the sum of one
    random vector per code, so that items are the nearer the more codes they share.

    Args:
        codes: Codes of each item, coarse level first.
        policy: Collision policy for items that share all codes.
        item_ids: The user's ids, row by row.
        titles: Titles, row by row.
        fingerprint: Fingerprint of the corpus that the items belong to.
        source: Origin of the codes (plain JSON types), stored in the bundle.
        embeddings: Vectors of the same items. A code's centroid is the mean of what its items'
            vectors leave after the levels before.
    """
    sizes = tuple(max(2, int(column.max()) + 1) for column in codes.unbind(dim=1))
    if embeddings is None:
        codebooks = _random_codebooks(sizes)
        embeddings = ItemEmbeddings(_sums(codes, codebooks), "external", fingerprint)
    else:
        codebooks = _mean_residuals(embeddings.vectors, codes, sizes)
    ones = tuple(torch.ones(size) for size in (1, *sizes[:-1]))
    fitted = FittedRqKMeans(codebooks, ones, normalized=False)
    vectors = embeddings.vectors
    resolution = policy.resolve(vectors, codes, fitted)
    return SemanticIdBundle(
        table=SemanticIdTable(resolution.codes, resolution.codebook_sizes),
        embeddings=embeddings,
        item_ids=item_ids,
        titles=titles,
        codebooks=fitted.tensors(),
        quantizer={"name": NAME, "codebook_sizes": list(sizes)},
        policy=policy.settings(),
        source=source,
        quality=quality_of(vectors, codes, resolution, fitted),
    )


def _random_codebooks(sizes: tuple[int, ...]) -> Codebooks:
    generator = torch.Generator().manual_seed(_SEED)
    scale = (_DIM * len(sizes)) ** -0.5  # their sum has length 1, nearly
    return tuple(torch.randn(size, _DIM, generator=generator) * scale for size in sizes)


def _mean_residuals(
    vectors: Float[Tensor, "item dim"], codes: Int[Tensor, "item level"], sizes: tuple[int, ...]
) -> Codebooks:
    residual, codebooks = vectors.float(), []
    for column, size in zip(codes.unbind(dim=1), sizes, strict=True):
        counts = torch.bincount(column, minlength=size).clamp(min=1)
        total = residual.new_zeros((size, residual.shape[1])).index_add_(0, column, residual)
        codebooks.append(total / counts[:, None])
        residual = residual - codebooks[-1][column]
    return tuple(codebooks)


def _sums(codes: Int[Tensor, "item level"], codebooks: Codebooks) -> Float[Tensor, "item dim"]:
    columns = zip(codes.unbind(dim=1), codebooks, strict=True)
    return torch.stack([codebook[column] for column, codebook in columns]).sum(dim=0)
