"""Types that stages exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sidrec.errors import DataError

Task = Literal["search", "recommendation"]
TASKS: tuple[Task, ...] = ("search", "recommendation")
TextKind = Literal["query", "item"]

_CHECKED_ROWS = 4096


class Request(NamedTuple):
    """Request to the system, and the items that answer it.

    Attributes:
        request_id: Unique within its task.
        task: ``search`` reads ``query``; ``recommendation`` reads ``history``.
        query: Text of the query; empty for recommendation.
        history: item_index of the items consumed so far, oldest first; empty for search.
        relevant: item_index of the right answers; empty if unknown.
        grades: Relevance grade of each of ``relevant``, 1 or more; empty: all 1.
    """

    request_id: str
    task: Task
    query: str
    history: tuple[int, ...]
    relevant: tuple[int, ...]
    grades: tuple[int, ...] = ()


class TextTokens(NamedTuple):
    """Token ids of a batch of texts, padded on the right.

    Attributes:
        ids: Token ids.
        mask: True where a token is, False on padding.
        lengths: Tokens of each text, for a host that need not wait for the device; None if unknown.
    """

    ids: Int[Tensor, "text token"]
    mask: Bool[Tensor, "text token"]
    lengths: Sequence[int] | None = None

    def lengths_on_host(self) -> list[int]:
        """Return the tokens of each text; reads the mask where ``lengths`` is None."""
        if self.lengths is not None:
            return list(self.lengths)
        found: list[int] = self.mask.sum(dim=1).tolist()
        return found


class PairBatch(NamedTuple):
    """Positive pairs of one task: row ``i`` of ``left`` belongs to row ``i`` of ``right``.

    Attributes:
        task: ``search`` (left: queries) or ``recommendation`` (left: items); one per batch.
        left: Anchor texts.
        right: Item texts.
        right_item: item_index of each right side.
        known_positives: item_index of every item that is not a negative for the left side of the
            row (its own pair's item included), padded with -1.
        right_log_frequency: Natural logarithm of the probability with which the sampler draws
            the right item, for the logQ correction.
    """

    task: Task
    left: TextTokens
    right: TextTokens
    right_item: Int[Tensor, " pair"]
    known_positives: Int[Tensor, "pair known"]
    right_log_frequency: Float[Tensor, " pair"]


@dataclass(frozen=True, slots=True)
class ItemEmbeddings:
    """Embedding of every item: row ``i`` belongs to item ``i`` of the catalogue.

    Attributes:
        vectors: Embeddings, float32, finite, compared by inner product; of length 1 unless the
            encoder says otherwise.
        encoder_hash: sha256 of the encoder, weights and all; ``external`` for foreign vectors.
        corpus_fingerprint: Fingerprint of the corpus whose items these are.

    Raises:
        DataError: If a vector holds NaN or infinity.
    """

    vectors: Float[Tensor, "item dim"]
    encoder_hash: str
    corpus_fingerprint: str

    def __post_init__(self) -> None:
        bad = not_finite_rows(self.vectors)
        if bad:
            raise DataError(
                f"{len(bad)} of {len(self.vectors)} item embeddings hold NaN or infinity "
                f"(first: item_index {bad[:5]}); check the encoder's loss, or use bf16 for fp16."
            )


def not_finite_rows(vectors: Float[Tensor, "item dim"]) -> list[int]:
    """Return the rows with NaN or infinity; it reads in parts, so vectors may be in a file."""
    return [
        start + row
        for start in range(0, len(vectors), _CHECKED_ROWS)
        for row in (~torch.isfinite(vectors[start : start + _CHECKED_ROWS]).all(dim=1))
        .nonzero()
        .flatten()
        .tolist()
    ]


@dataclass(frozen=True, slots=True)
class SemanticIdTable:
    """Semantic ID of every item: row ``i`` belongs to item ``i`` of the catalogue.

    Attributes:
        codes: ``codes[i, l]`` lies in ``[0, codebook_sizes[l])``, coarse level first. Rows may
            repeat when the collision policy is ``none``.
        codebook_sizes: Number of codes at each level.

    Raises:
        DataError: If the levels disagree or a code is out of range.
    """

    codes: Int[Tensor, "item level"]
    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        num_levels = self.codes.shape[1]
        if num_levels != len(self.codebook_sizes):
            raise DataError(
                f"Semantic ID table has {num_levels} levels but codebook sizes "
                f"{self.codebook_sizes}; give one size per level, tie-break level included."
            )
        limit = self.codes.new_tensor(self.codebook_sizes)
        if ((self.codes < 0) | (self.codes >= limit)).any():
            raise DataError(f"Some codes lie outside {self.codebook_sizes}; refit the codebooks.")


class RankedItems(NamedTuple):
    """Ranked items of a batch of requests, best first.

    Attributes:
        items: item_index, no item twice in a row; -1 pads shorter lists.
        scores: Log-probability of the item's Semantic ID, in nats, not increasing along a row;
            -inf on padding.
    """

    items: Int[Tensor, "request rank"]
    scores: Float[Tensor, "request rank"]
