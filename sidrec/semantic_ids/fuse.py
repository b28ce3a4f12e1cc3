"""Semantic IDs from the vectors of one run or two, for a generator that reads another one's."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidrec.encoder.fusion import fused_concat, fused_svd
from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions import CollisionPolicy
from sidrec.semantic_ids.maker import make_semantic_ids
from sidrec.semantic_ids.quantizer import Quantizer
from sidrec.semantic_ids.stored_source import stored_bundle
from sidrec.types import ItemEmbeddings

Fusion = Literal["none", "concat", "svd_sum", "svd_concat"]


def fuse_ids(
    run: Path,
    other: Path | None,
    *,
    fusion: Fusion,
    dim: int | None,
    reader: Path | None,
    out: Path,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    device: torch.device,
) -> SemanticIdBundle:
    """Make and write a bundle whose codes come from fused vectors.

    Args:
        run: Encoder run or bundle.
        other: The second one; None with fusion ``none``.
        fusion: ``none`` quantizes ``run`` alone.
        dim: Dimensions that truncated SVD keeps; None for the other ways.
        reader: Run or bundle whose vectors the bundle shall hold in place of the fused ones: what
            a generator reads as items, in one space with the queries. Its codes then differ from
            strategy to strategy and nothing else does. None keeps the fused vectors.
        out: Folder to write.
        quantizer: How codes are made.
        policy: What happens where items share codes.
        device: Where to compute.

    Raises:
        ConfigError: If the arguments contradict each other.
        DataError: If the runs belong to different corpora.
        RunError: If a run has not finished or holds no embeddings.
    """
    _check(other, fusion, dim)
    folders = [folder for folder in (run, other, reader) if folder is not None]
    bundles = {folder: stored_bundle(folder) for folder in folders}
    check_one_corpus(bundles)
    vectors = bundles[run].embeddings
    if other is not None:
        fused = _fused(vectors, bundles[other].embeddings, fusion=fusion, dim=dim)
        vectors = ItemEmbeddings(fused, vectors.encoder_hash, vectors.corpus_fingerprint)
    source: dict[str, Any] = {
        "fusion": fusion,
        "dim": dim,
        "bundles": [bundle.hash for folder, bundle in bundles.items() if folder != reader],
        "reader": bundles[reader].hash if reader is not None else None,
    }
    bundle = make_semantic_ids(
        vectors,
        quantizer=quantizer,
        policy=policy,
        item_ids=bundles[run].item_ids,
        titles=bundles[run].titles,
        source=source,
        device=device,
    )
    if reader is not None:
        bundle = replace(bundle, embeddings=bundles[reader].embeddings)
    bundle.save(out)
    return bundle


def _fused(
    first: ItemEmbeddings, second: ItemEmbeddings, *, fusion: Fusion, dim: int | None
) -> torch.Tensor:
    if fusion == "concat":
        return fused_concat(first.vectors, second.vectors)
    return fused_svd(
        first.vectors,
        second.vectors,
        dim=dim or 0,
        combine="sum" if fusion == "svd_sum" else "concat",
    )


def _check(other: Path | None, fusion: Fusion, dim: int | None) -> None:
    if (other is None) != (fusion == "none"):
        raise ConfigError(
            f"--fusion {fusion} with {'one run' if other is None else 'two runs'}: give --and RUN "
            "with concat, svd_sum or svd_concat, and leave it out with none."
        )
    if (dim is None) == fusion.startswith("svd"):
        raise ConfigError(f"--fusion {fusion}: --dim belongs to svd_sum and svd_concat.")


def check_one_corpus(bundles: dict[Path, SemanticIdBundle]) -> None:
    """Refuse bundles over different corpora.

    Raises:
        DataError: Names two folders that do not belong together.
    """
    (first, bundle), *rest = bundles.items()
    for folder, other in rest:
        if other.corpus_fingerprint != bundle.corpus_fingerprint:
            raise DataError(
                f"{folder} belongs to corpus {other.corpus_fingerprint[:12]}, {first} to "
                f"{bundle.corpus_fingerprint[:12]}; give runs over one corpus."
            )
