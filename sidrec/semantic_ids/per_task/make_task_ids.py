"""Semantic IDs for search and recommendation: fused, separate, or with a shared prefix."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidrec.encoder.fusion import Combine, fused_concat, fused_svd
from sidrec.errors import ConfigError, DataError
from sidrec.plugins import find_function
from sidrec.semantic_ids.bundle.append import stored_bundle
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.vector_reader import finite_rows
from sidrec.semantic_ids.collisions.policies import CollisionPolicy
from sidrec.semantic_ids.per_task.prefix_share import PrefixShareSettings, fit_prefix_share
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.semantic_ids.quality.id_metrics import quality_of
from sidrec.semantic_ids.quantizers.base import Quantizer
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.types import TASKS, ItemEmbeddings, SemanticIdTable, Task

FUSIONS = ("none", "concat", "svd_sum", "svd_concat")


def fuse_ids(
    run: Path,
    other: Path | None,
    *,
    fusion: str,
    dim: int | None,
    reader: Path | None,
    out: Path,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    device: torch.device,
) -> SemanticIdBundle:
    """Fuse the vectors of two runs, quantize them, and write the bundle.

    Args:
        run: Encoder run or bundle.
        other: Second encoder run or bundle; None with fusion ``none``.
        fusion: ``none`` quantizes ``run`` alone; else ``concat``, ``svd_sum``, ``svd_concat``, or
            the name or path of a function of a plug-in (``sidrec.fusions``), which is called as
            ``function(first, second, dim=dim)`` and returns one vector per item.
        dim: Dimensions that truncated SVD keeps; None for ``none`` and ``concat``.
        reader: Run or bundle whose vectors the new bundle holds in place of the fused ones. A
            generator reads them as items, in one space with the queries. Bundles of different
            strategies then differ only in codes. None keeps the fused vectors.
        out: Folder to write.
        quantizer: Quantizer, fitted here.
        policy: Collision policy.
        device: Device of all computation.

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
    bundle = build_semantic_ids(
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
    first: ItemEmbeddings, second: ItemEmbeddings, *, fusion: str, dim: int | None
) -> torch.Tensor:
    if fusion == "concat":
        return fused_concat(first.vectors, second.vectors)
    if fusion in FUSIONS:
        combine: Combine = "sum" if fusion == "svd_sum" else "concat"
        return fused_svd(first.vectors, second.vectors, dim=dim or 0, combine=combine)
    fused = find_function("fusions", fusion, known=FUSIONS)(first.vectors, second.vectors, dim=dim)
    if not (isinstance(fused, torch.Tensor) and len(fused) == len(first.vectors)):
        raise DataError(
            f"The fusion '{fusion}' must return one vector per item; correct the function."
        )
    return finite_rows(fused, f"the result of fusion '{fusion}'")


def _check(other: Path | None, fusion: str, dim: int | None) -> None:
    if fusion not in FUSIONS:
        find_function("fusions", fusion, known=FUSIONS)
        if other is None:
            raise ConfigError(f"--fusion {fusion} needs --and RUN.")
        return
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
        DataError: If the corpora differ; names two folders.
    """
    (first, bundle), *rest = bundles.items()
    for folder, other in rest:
        if other.corpus_fingerprint != bundle.corpus_fingerprint:
            raise DataError(
                f"{folder} belongs to corpus {other.corpus_fingerprint[:12]}, {first} to "
                f"{bundle.corpus_fingerprint[:12]}; give runs over one corpus."
            )


TaskFusion = Literal["separate", "prefix_share"]


def make_task_ids(
    search: Path,
    recommendation: Path,
    *,
    fusion: TaskFusion,
    reader: Path | None,
    out: Path,
    quantizer: Quantizer | None,
    prefix_share: PrefixShareSettings | None,
    policy: CollisionPolicy,
    device: torch.device,
) -> TaskBundles:
    """Build and write the Semantic IDs of each task from the vectors of two runs.

    Args:
        search: Encoder run or bundle whose vectors serve search.
        recommendation: The same for recommendation.
        fusion: ``separate``: own codebooks for each task; ``prefix_share``: a shared first one.
        reader: Run or bundle whose vectors a generator reads as items (see ``fuse_ids``).
        out: Folder to write.
        quantizer: Quantizer of each task; only for ``separate``.
        prefix_share: Settings of the codes; only for ``prefix_share``.
        policy: Collision policy.
        device: Device of all computation.

    Raises:
        ConfigError: If the arguments contradict each other.
        DataError: If the runs belong to different corpora.
        RunError: If a run has not finished or holds no embeddings.
    """
    folders = [folder for folder in (search, recommendation, reader) if folder is not None]
    bundles = {folder: stored_bundle(folder) for folder in folders}
    check_one_corpus(bundles)
    vectors: dict[Task, ItemEmbeddings] = {
        "search": bundles[search].embeddings,
        "recommendation": bundles[recommendation].embeddings,
    }
    first = bundles[search]
    source: dict[str, Any] = {
        "fusion": fusion,
        "bundles": [bundles[folder].hash for folder in (search, recommendation)],
        "reader": bundles[reader].hash if reader is not None else None,
    }
    names = {"item_ids": first.item_ids, "titles": first.titles}
    if fusion == "separate":
        if quantizer is None or prefix_share is not None:
            raise ConfigError(
                "--fusion separate needs quantizer and no prefix_share; give --config "
                "configs/ids/default.yaml."
            )
        made = separate_ids(
            vectors, quantizer=quantizer, policy=policy, source=source, device=device, **names
        )
    else:
        if prefix_share is None or quantizer is not None:
            raise ConfigError(
                "--fusion prefix_share needs prefix_share and no quantizer; give --config "
                "configs/ids/task/prefix_share.yaml."
            )
        made = prefix_share_ids(vectors, prefix_share, policy=policy, source=source, **names)
    if reader is not None:
        made = made.read_as(bundles[reader].embeddings)
    made.save(out)
    return made


def separate_ids(
    vectors: dict[Task, ItemEmbeddings],
    *,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    source: dict[str, Any],
    device: torch.device,
) -> TaskBundles:
    """Quantize each task's vectors with its own codebooks ("Separate" in the paper).

    ``source`` is the origin of the vectors.

    Raises:
        DataError: If the vectors are not usable, or of different catalogues.
    """
    bundles = {
        task: build_semantic_ids(
            vectors[task],
            quantizer=quantizer,
            policy=policy,
            item_ids=item_ids,
            titles=titles,
            source={**source, "task": task},
            device=device,
        )
        for task in TASKS
    }
    return TaskBundles(bundles, num_shared_levels=0)


def prefix_share_ids(
    vectors: dict[Task, ItemEmbeddings],
    settings: PrefixShareSettings,
    *,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    source: dict[str, Any],
) -> TaskBundles:
    """Assign each item a first code that both tasks share and a second code per task.

    The bundles hold the tasks' own vectors; codebooks and quality metrics belong to the latent
    space. ``source`` is the origin of the vectors.

    Raises:
        ConfigError: If there are fewer items than codes, or the policy would move an item to
            another prefix.
        DataError: If the vectors are of different catalogues.
    """
    search, recommendation = vectors["search"].vectors, vectors["recommendation"].vectors
    fitted = fit_prefix_share(search, recommendation, settings)
    bundles = {
        task: _bundle(
            vectors[task],
            fitted.latents,
            fitted.quantizers[task],
            policy,
            item_ids,
            titles,
            {**source, "task": task},
        )
        for task in TASKS
    }
    for task in TASKS:
        before = fitted.quantizers[task].encode(fitted.latents)[:, 0]
        if not torch.equal(bundles[task].table.codes[:, 0].long(), before.cpu()):
            raise ConfigError(
                f"{policy.settings()['name']} moved items of {task} to another prefix, which both "
                "tasks must share; use ExtraLevel or more task_codes."
            )
        bundles[task].quality["ids/task_reconstruction_error"] = fitted.errors[task]
    return TaskBundles(bundles, num_shared_levels=1)


def _bundle(
    vectors: ItemEmbeddings,
    latents: torch.Tensor,
    quantizer: FittedRqKMeans,
    policy: CollisionPolicy,
    item_ids: list[str],
    titles: list[str],
    source: dict[str, Any],
) -> SemanticIdBundle:
    codes = quantizer.encode(latents).cpu()
    resolution = policy.resolve(latents, codes, quantizer)
    return SemanticIdBundle(
        table=SemanticIdTable(resolution.codes, resolution.codebook_sizes),
        embeddings=vectors,
        item_ids=item_ids,
        titles=titles,
        codebooks=quantizer.tensors(),
        quantizer={"name": "rq_kmeans", "space": "prefix_share"},
        policy=policy.settings(),
        source=source,
        quality=quality_of(latents, codes, resolution, quantizer),
    )
