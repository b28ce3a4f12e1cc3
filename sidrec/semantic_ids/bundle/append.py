"""Bundle extension: encode new items with frozen codebooks, keep every existing ID."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.console import say
from sidrec.errors import ConfigError, DataError, RunError, SidrecError
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.storage import DESCRIPTION, digest_of_strings, digest_of_tensors
from sidrec.semantic_ids.bundle.vector_reader import NamedVectors, stacked_rows
from sidrec.semantic_ids.collisions.policies import Resolution
from sidrec.semantic_ids.collisions.sinkhorn import load_policy
from sidrec.semantic_ids.quality.id_metrics import quality_of
from sidrec.semantic_ids.quality.purity import Attribute, attributes_of_items
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from sidrec.types import ItemEmbeddings, SemanticIdTable

_BATCH_SIZE = 64


def stored_bundle(folder: Path) -> SemanticIdBundle:
    """Return the bundle in a folder or in a finished run.

    Raises:
        RunError: If the folder is an unfinished run or holds no bundle.
        DataError: If the bundle is damaged.
    """
    if not (folder / DESCRIPTION).exists():  # not a bundle itself
        run = RunDirectory(folder)
        run.finished_checkpoint()
        folder = run.semantic_ids
        if not folder.exists():
            raise RunError(f"{run.root} holds no semantic_ids; give --from an encoder run.")
    return SemanticIdBundle.load(folder)


def attributes_of_run(folder: Path, corpus_fingerprint: str) -> list[Attribute]:
    """Return item attributes of a run's corpus; an empty list if the corpus is not available.

    Args:
        folder: Run directory, or the bundle in it.
        corpus_fingerprint: Fingerprint stored in the bundle; a changed corpus gives no attributes.
    """
    run = RunDirectory(folder if (folder / "config.yaml").exists() else folder.parent)
    if not run.config.exists():
        return []
    from sidrec.corpus.store import Corpus  # late: it imports datasets

    try:
        corpus = Corpus.load(read_config(run.config)["data"]["init_args"]["corpus"])
    except (SidrecError, KeyError, TypeError):
        say("No purity metrics: the corpus of the run does not exist here.")
        return []
    if corpus.fingerprint != corpus_fingerprint:
        say("No purity metrics: the corpus of the run has changed.")
        return []
    return attributes_of_items(corpus.items.data.table)


def encode_new_items(
    run: Path, bundle: SemanticIdBundle, file: Path, device: torch.device
) -> NamedVectors:
    """Encode the texts of new items with the encoder and settings of a bundle.

    Args:
        run: Run directory of the bi-encoder that made the bundle's vectors.
        bundle: Bundle with the text length limit and the precision to use.
        file: Table of items, as `sidrec prepare table --items` reads it.
        device: Device of the encoder.

    Raises:
        ConfigError: If ``run`` is a bundle.
        RunError: If ``run`` is not a finished encoder run.
        DataError: If the bundle has vectors of another encoder, or the file cannot be read.
    """
    from sidrec.corpus.sources.user_tables import (
        read_items,  # late: they import datasets and Lightning
    )
    from sidrec.encoder.encode import encode_texts, encoder_hash
    from sidrec.encoder.load_encoder import load_encoder

    if (run / DESCRIPTION).exists():
        raise ConfigError(
            f"--from {run} is a bundle, which cannot encode texts; give the encoder run that made "
            "its vectors, or append vectors."
        )
    items = read_items(file)
    encoder = load_encoder(RunDirectory(run)).tower
    made_by, source = encoder_hash(encoder), bundle.source
    if made_by != bundle.embeddings.encoder_hash or "max_item_tokens" not in source:
        raise DataError(
            f"The bundle's vectors were not made by the encoder of {run}; give the run that made "
            "them, or append vectors."
        )
    vectors = encode_texts(
        encoder.to(device),
        items["text"].to_list(),
        kind="item",
        max_tokens=source["max_item_tokens"],
        batch_size=_BATCH_SIZE,
        bf16=source.get("bf16", False),
    )
    embeddings = ItemEmbeddings(vectors, made_by, bundle.corpus_fingerprint)
    return NamedVectors(embeddings, items["item_id"].to_list(), items["title"].to_list())


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
    """Return a bundle of the existing items, unchanged, followed by the new ones.

    The bundle's codebooks encode the new items. Its collision policy assigns their IDs among the
    IDs in use. The new bundle has its own hash and corpus fingerprint, so a generator trained on
    the old one refuses it. Its quality metrics cover all items; ``…_before`` measures the codes
    from the frozen codebooks.

    Args:
        bundle: Bundle of the existing items.
        vectors: Float32 vectors from the same encoder; only the width is checked.
        item_ids: New ids, row by row.
        titles: Titles, row by row.
        source: Origin of the new vectors (plain JSON types).
        device: Device of all computation.
        attributes: Attributes of all items, for the purity metrics.

    Raises:
        DataError: If there are no new items, an id is not new or repeats, or the width differs.
        ConfigError: If the policy has no room for so many items.
    """
    if not item_ids:
        raise DataError("There are no new items to append; give a file with at least one row.")
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
