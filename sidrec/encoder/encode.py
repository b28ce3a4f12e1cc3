"""Embeddings of many texts: sorted by length, sharded over ranks, gathered in order."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.console import track
from sidrec.corpus.memmap_cache import derived_folder
from sidrec.corpus.store import Corpus
from sidrec.distributed import gather_rows, rank_and_world_size
from sidrec.encoder.enmf.module import FactorTower
from sidrec.encoder.sharded_memmap import SharedVectors
from sidrec.encoder.tower import TextTower
from sidrec.types import ItemEmbeddings, TextKind, TextTokens

_BATCHES_TOKENIZED_TOGETHER = 64
_IN_MEMORY_BYTES = 2 << 30


def encode_texts(
    tower: TextTower,
    texts: Sequence[str],
    *,
    kind: TextKind,
    max_tokens: int,
    batch_size: int,
    bf16: bool = False,
) -> Float[Tensor, "text dim"]:
    """Embed texts on this rank, without gradient and dropout.

    Args:
        tower: Text tower; keeps its device and mode.
        texts: Texts in any order, without prompt.
        kind: Queries or items: the prompt before each text.
        max_tokens: Longer texts are cut; the prompt does not count.
        batch_size: Texts per forward pass; texts of similar length share a batch, so the largest
            batches hold the longest texts.
        bf16: Run the encoder under bfloat16 autocast.

    Returns:
        The tower's float32 embeddings on the CPU, row ``i`` for text ``i``.
    """
    vectors = torch.empty(len(texts), tower.dim)
    for first, part in _encoded(tower, texts, kind, max_tokens, batch_size, bf16):
        vectors[first : first + len(part)] = part
    return vectors


def _encoded(
    tower: TextTower,
    texts: Sequence[str],
    kind: TextKind,
    max_tokens: int,
    batch_size: int,
    bf16: bool,
) -> Iterator[tuple[int, Float[Tensor, "part dim"]]]:
    """Yield the first row of each part, and the part's embeddings."""
    together = batch_size * _BATCHES_TOKENIZED_TOGETHER
    was_training = tower.training
    tower.eval()
    try:
        with torch.inference_mode(), autocast_of(tower, bf16):
            starts = range(0, len(texts), together)
            for first in track(starts, "Encoding texts", total=len(starts)):
                part = list(texts[first : first + together])
                yield first, _encode(tower, part, kind, max_tokens, batch_size)
    finally:
        tower.train(was_training)


def encode_over_ranks(
    tower: TextTower,
    texts: Sequence[str],
    *,
    kind: TextKind,
    max_tokens: int,
    batch_size: int,
    bf16: bool = False,
    folder: Path | None = None,
) -> Float[Tensor, "text dim"]:
    """Embed texts over all ranks: each embeds a slice, and every rank returns all embeddings.

    The result is the same for any number of ranks, up to rounding.

    Args:
        tower: Text tower, as for ``encode_texts``.
        texts: Texts of all ranks, without prompt.
        kind: Queries or items: the prompt before each text.
        max_tokens: Longer texts are cut; the prompt does not count.
        batch_size: Texts per forward pass.
        bf16: Run the encoder under bfloat16 autocast.
        folder: Folder for memory-mapped vectors, used above 2 GiB; all ranks must see it. None
            keeps them in memory.
    """
    how: dict[str, Any] = {"kind": kind, "max_tokens": max_tokens}
    how |= {"batch_size": batch_size, "bf16": bf16}
    if folder is not None and len(texts) * tower.dim * 4 > _IN_MEMORY_BYTES:
        shared = SharedVectors(folder, len(texts), tower.dim)
        first, end = shared.share()
        for row, part in _encoded(tower, texts[first:end], **how):
            shared.write(first + row, part)
        return shared.all()
    rank, world_size = rank_and_world_size()
    first, end = (len(texts) * r // world_size for r in (rank, rank + 1))
    own = encode_texts(tower, texts[first:end], **how)
    device = next(tower.parameters()).device
    return gather_rows(own.to(device)).cpu()


def encode_catalogue(
    tower: TextTower | FactorTower,
    corpus: Corpus,
    *,
    max_tokens: int,
    batch_size: int,
    bf16: bool = False,
) -> ItemEmbeddings:
    """Embed every item of a corpus; all ranks must call this, and each gets all items.

    Vectors of more than 2 GiB are in a memory-mapped file, so memory does not grow with the items.
    A text tower reads the items' texts; a factor tower already has item vectors and reads no text.

    Raises:
        DataError: If an embedding holds NaN or infinity.
    """
    if isinstance(tower, FactorTower):
        return ItemEmbeddings(tower.item_vectors(), encoder_hash(tower), corpus.fingerprint)
    vectors = encode_over_ranks(
        tower,
        corpus.item_text_column(),
        kind="item",
        max_tokens=max_tokens,
        batch_size=batch_size,
        bf16=bf16,
        folder=derived_folder(corpus.folder, corpus.fingerprint),
    )
    return ItemEmbeddings(vectors, encoder_hash(tower), corpus.fingerprint)


def encoder_hash(tower: TextTower | FactorTower) -> str:
    """Return the sha256 of all weights, and of pooling and prompts, in hexadecimal."""
    digest = hashlib.sha256(repr(getattr(tower, "embedding", "")).encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(
    tower: TextTower, texts: list[str], kind: TextKind, max_tokens: int, batch_size: int
) -> Float[Tensor, "text dim"]:
    ids = tower.token_rows(texts, max_tokens=max_tokens, kind=kind)
    order = sorted(range(len(texts)), key=lambda row: -len(ids[row]))  # longest first: fail early
    device = next(tower.parameters()).device
    vectors = torch.empty(len(texts), tower.dim)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        tokens = tower.padded([ids[row] for row in chosen])
        tokens = TextTokens(tokens.ids.to(device), tokens.mask.to(device))
        vectors[chosen] = tower(tokens).float().cpu()
    return vectors


def autocast_of(tower: TextTower, bf16: bool) -> AbstractContextManager[object]:
    """Return bfloat16 autocast on the tower's device, or a null context when ``bf16`` is off."""
    device = next(tower.parameters()).device.type
    return torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()
