"""From item embeddings to a Semantic-ID bundle: quantize, resolve collisions, judge."""

from collections.abc import Sequence
from typing import Any

import torch

from sidrec.distributed import gather_rows, on_rank_zero
from sidrec.semantic_ids.attributes import Attribute
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions import CollisionPolicy, Resolution
from sidrec.semantic_ids.quality import quality_of
from sidrec.semantic_ids.quantizer import Quantizer
from sidrec.semantic_ids.rows import block_of_rank
from sidrec.types import ItemEmbeddings, SemanticIdTable


def make_semantic_ids(
    embeddings: ItemEmbeddings,
    *,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    source: dict[str, Any],
    device: torch.device,
    attributes: Sequence[Attribute] = (),
) -> SemanticIdBundle:
    """Quantize a catalogue and give every item its Semantic ID.

    Collective: all ranks call it with the same arguments (each on its own device), share the
    quantizer's work, and get equal bundles. Collisions are resolved on rank 0.

    Args:
        embeddings: Vectors of the whole catalogue.
        quantizer: Fitted here, on ``device``.
        policy: What happens where items share codes.
        item_ids: The user's ids, row by row.
        titles: Titles, row by row.
        source: Where the vectors come from (plain JSON types), for the bundle.
        device: Where to compute.
        attributes: Of the items, for the purity figures.

    Raises:
        DataError: If the vectors are not usable; on every rank.
        ConfigError: If codebooks and catalogue do not fit together; on every rank.
    """
    start, stop = block_of_rank(len(embeddings.vectors))
    block = embeddings.vectors[start:stop].to(device)
    fitted = quantizer.fit(block)
    codes = gather_rows(fitted.encode(block)).cpu()

    def resolve() -> tuple[Resolution, dict[str, float]]:
        resolution = policy.resolve(embeddings.vectors, codes, fitted)
        quality = quality_of(embeddings.vectors, codes, resolution, fitted, attributes=attributes)
        return resolution, quality

    resolution, quality = on_rank_zero(resolve)
    return SemanticIdBundle(
        table=SemanticIdTable(resolution.codes, resolution.codebook_sizes),
        embeddings=embeddings,
        item_ids=item_ids,
        titles=titles,
        codebooks={name: tensor.cpu() for name, tensor in fitted.tensors().items()},
        quantizer=quantizer.settings(),
        policy=policy.settings(),
        source=source,
        quality=quality,
    )
