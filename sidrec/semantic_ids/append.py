"""New items for an old bundle: frozen codebooks, and not one ID of the old items changes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import DataError
from sidrec.semantic_ids.attributes import Attribute
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle_files import digest_of_strings, digest_of_tensors
from sidrec.semantic_ids.collisions import Resolution
from sidrec.semantic_ids.fitted import load_quantizer
from sidrec.semantic_ids.float_rows import stacked_rows
from sidrec.semantic_ids.quality import quality_of
from sidrec.semantic_ids.stored_policy import load_policy
from sidrec.types import ItemEmbeddings, SemanticIdTable


def append_items(
    bundle: SemanticIdBundle,
    vectors: Float[Tensor, "item dim"],
    *,
    item_ids: list[str],
    titles: list[str],
    source: dict[str, Any],
    device: torch.device,
    attributes: Sequence[Attribute] = (),
) -> SemanticIdBundle:
    """Return a bundle of the old items, as they are, and behind them the new ones.

    New items are encoded with the bundle's codebooks and placed by its collision policy among the
    IDs in use. The bundle has a hash and a corpus fingerprint of its own, so that a generator
    trained on the old one refuses it. Its quality figures are of all items; ``…_before`` are of
    codes that the frozen codebooks give them.

    Args:
        bundle: Old items.
        vectors: Float32, of the encoder that made the old vectors: only the width is checked.
        item_ids: New ids, row by row.
        titles: Titles, row by row.
        source: Where the new vectors come from (plain JSON types).
        device: Where to compute.
        attributes: Attributes of all items, for the purity figures.

    Raises:
        DataError: If an id is not new or repeats, or the width differs.
        ConfigError: If the policy has no room for so many items.
    """
    _refuse_known(bundle, item_ids)
    old = bundle.embeddings.vectors
    if vectors.shape[1] != old.shape[1]:
        raise DataError(
            f"The new vectors have {vectors.shape[1]} dimensions, those of the bundle "
            f"{old.shape[1]}; use the encoder that the bundle was made with."
        )
    codebooks = {name: tensor.to(device) for name, tensor in bundle.codebooks.items()}
    fitted = load_quantizer(bundle.quantizer["name"], codebooks)
    placed = load_policy(bundle.policy).resolve(
        vectors, fitted.encode(vectors).cpu(), fitted, in_use=bundle.table.codes
    )
    codes = torch.cat([bundle.table.codes, placed.codes])
    both = stacked_rows([old, vectors], len(codes), old.shape[1])
    sizes = bundle.table.codebook_sizes
    fingerprint = digest_of_strings(
        [bundle.corpus_fingerprint, digest_of_tensors({"embeddings": vectors}), *item_ids]
    )
    before = fitted.encode(both).cpu()
    return SemanticIdBundle(
        table=SemanticIdTable(codes, sizes),
        embeddings=ItemEmbeddings(both, bundle.embeddings.encoder_hash, fingerprint),
        item_ids=bundle.item_ids + item_ids,
        titles=bundle.titles + titles,
        codebooks=bundle.codebooks,
        quantizer=bundle.quantizer,
        policy=bundle.policy,
        source=_with_addition(bundle.source, source | {"num_items": len(item_ids)}),
        quality=quality_of(both, before, Resolution(codes, sizes), fitted, attributes=attributes),
    )


def _refuse_known(bundle: SemanticIdBundle, item_ids: list[str]) -> None:
    known = set(bundle.item_ids)
    for row, item_id in enumerate(item_ids):
        if item_id in known:
            raise DataError(
                f"item_id '{item_id}' (row {row} of the new items, counted from 0) is in the "
                "bundle already, or occurs twice; append items that are new."
            )
        known.add(item_id)


def _with_addition(source: dict[str, Any], addition: dict[str, Any]) -> dict[str, Any]:
    return source | {"appended": [*source.get("appended", []), addition]}
