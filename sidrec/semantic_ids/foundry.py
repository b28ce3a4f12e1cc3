"""Semantic IDs in Python: fit on vectors, append to a bundle; encode and decode are the bundle's.

>>> import torch
>>> from sidrec.semantic_ids.collisions import ReassignLastLevel
>>> from sidrec.semantic_ids.rq_kmeans import RqKMeans
>>> quantizer = RqKMeans(
...     codebook_sizes=(2, 2), num_iterations=5, tolerance=0.0, num_redo=1, init="progressive",
...     sample_rows_per_code=256, normalize_residuals=False, seed=0,
... )
>>> vectors = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
>>> bundle = fit_ids(
...     vectors, quantizer=quantizer, policy=ReassignLastLevel(), item_ids=["a", "b", "c"]
... )
>>> bundle.decode(bundle.table.codes).shape
torch.Size([3, 2])
>>> bundle.items_of(bundle.semantic_id_of("b"))
['b']
>>> larger = append_ids(bundle, torch.tensor([[9.0, 0.0]]), item_ids=["d"])
>>> larger.semantic_id_of("c") == bundle.semantic_id_of("c") != larger.semantic_id_of("d")
True
"""

from collections.abc import Sequence

import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.append import append_items
from sidrec.semantic_ids.attributes import Attribute
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle_files import digest_of_tensors
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.float_rows import Vectors, as_tensor
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.semantic_ids.quantizer import Quantizer
from sidrec.semantic_ids.vector_file import finite_rows
from sidrec.types import ItemEmbeddings


def fit_ids(
    vectors: Vectors,
    *,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    attributes: Sequence[Attribute] = (),
    device: str = "cpu",
) -> SemanticIdBundle:
    """Fit a quantizer on vectors and give every row its Semantic ID.

    Args:
        vectors: One row per item, of any floating dtype and strides; an array may be
            memory-mapped.
        quantizer: How codes are made.
        policy: What happens where items share codes.
        item_ids: Unique; by default the row numbers.
        titles: By default empty.
        attributes: Of the items, for the purity figures (``attributes.read_attributes``).
        device: ``cpu`` or ``cuda``.

    Raises:
        DataError: If vectors, ids or titles cannot be used; names the row.
        ConfigError: If codebooks, policy and number of items do not fit together.
    """
    rows = finite_rows(as_tensor(vectors), "vectors")
    ids, names = _named(len(rows), item_ids, titles, first_id=0)
    return make_semantic_ids(
        ItemEmbeddings(rows, "external", digest_of_tensors({"embeddings": rows})),
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
    """Return a new bundle with further items; the IDs of the old ones stay (``append_items``).

    Args:
        bundle: Old items.
        vectors: Of new items, made by the encoder of the old ones.
        item_ids: New ones; by default the row numbers, counted on from the old items.
        titles: By default empty.
        attributes: Of all items, old and new.
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
