"""Semantic IDs from item embeddings: quantize, resolve collisions, measure quality."""

from collections.abc import Sequence
from typing import Any

import torch

from sidrec.distributed import gather_rows, on_rank_zero
from sidrec.errors import DataError
from sidrec.semantic_ids.bundle.append import append_items
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.storage import digest_of_tensors
from sidrec.semantic_ids.bundle.vector_reader import Vectors, as_tensor, finite_rows
from sidrec.semantic_ids.collisions.policies import CollisionPolicy, Resolution
from sidrec.semantic_ids.kmeans.sharded_rows import block_of_rank
from sidrec.semantic_ids.quality.id_metrics import quality_of
from sidrec.semantic_ids.quality.purity import Attribute
from sidrec.semantic_ids.quantizers.base import Quantizer
from sidrec.types import ItemEmbeddings, SemanticIdTable


def fit_ids(
    vectors: Vectors | ItemEmbeddings,
    *,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    attributes: Sequence[Attribute] = (),
    device: str = "cpu",
) -> SemanticIdBundle:
    """Fit a quantizer on vectors and assign a Semantic ID to every row.

    Args:
        vectors: One row per item, of any floating dtype and strides; an array may be
            memory-mapped. ``ItemEmbeddings`` keep their encoder and corpus, which a generator on
            that corpus requires.
        quantizer: Quantizer to fit.
        policy: Collision policy.
        item_ids: Unique ids; by default the row numbers.
        titles: Item titles; by default empty.
        attributes: Item attributes for the purity metrics (see ``read_attributes``).
        device: ``cpu`` or ``cuda``.

    Raises:
        DataError: If vectors, ids or titles cannot be used; names the row.
        ConfigError: If codebooks, policy and number of items do not fit together.
    """
    if isinstance(vectors, ItemEmbeddings):
        embeddings = vectors
    else:
        rows = finite_rows(as_tensor(vectors), "vectors")
        embeddings = ItemEmbeddings(rows, "external", digest_of_tensors({"embeddings": rows}))
    ids, names = _named(len(embeddings.vectors), item_ids, titles, first_id=0)
    return build_semantic_ids(
        embeddings,
        quantizer=quantizer,
        policy=policy,
        item_ids=ids,
        titles=names,
        source={"file": None},
        device=torch.device(device),
        attributes=attributes,
    )


def append_ids(
    bundle: SemanticIdBundle,
    vectors: Vectors,
    *,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    attributes: Sequence[Attribute] = (),
    device: str = "cpu",
) -> SemanticIdBundle:
    """Return a new bundle with items appended; existing IDs do not change (``append_items``).

    Args:
        bundle: Bundle of the existing items.
        vectors: Vectors of the new items, from the encoder of the existing ones.
        item_ids: Ids of the new items; by default row numbers that continue the existing rows.
        titles: Titles of the new items; by default empty.
        attributes: Attributes of all items, existing and new.
        device: ``cpu`` or ``cuda``.

    Raises:
        DataError: If an id is not new, or vectors, ids or titles cannot be used.
        ConfigError: If the bundle's policy has no room for so many items.
    """
    rows = finite_rows(as_tensor(vectors), "vectors")
    ids, names = _named(len(rows), item_ids, titles, first_id=len(bundle.item_ids))
    return append_items(
        bundle,
        rows,
        item_ids=ids,
        titles=names,
        source={"file": None},
        device=torch.device(device),
        attributes=attributes,
    )


def _named(
    num_items: int, item_ids: Sequence[str] | None, titles: Sequence[str] | None, *, first_id: int
) -> tuple[list[str], list[str]]:
    ids = [str(first_id + row) for row in range(num_items)] if item_ids is None else list(item_ids)
    names = [""] * num_items if titles is None else list(titles)
    for what, found in (("item_ids", ids), ("titles", names)):
        if len(found) != num_items:
            raise DataError(f"{len(found)} {what} for {num_items} vectors; give one for each.")
    return ids, names


def build_semantic_ids(
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
    """Quantize a catalogue and assign a Semantic ID to every item.

    Collective: all ranks call it with the same arguments, each on its own device, and get equal
    bundles. The ranks share the quantizer's work; rank 0 resolves collisions.

    Args:
        embeddings: Vectors of the whole catalogue.
        quantizer: Quantizer, fitted here on ``device``.
        policy: Collision policy.
        item_ids: The user's ids, row by row.
        titles: Titles, row by row.
        source: Origin of the vectors (plain JSON types), stored in the bundle.
        device: Device of all computation.
        attributes: Item attributes for the purity metrics.

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
