"""Settings of the bi-encoder: tower, loss and validation."""

from dataclasses import dataclass

from sidrec.pairs.sentence_embedding import Pooling
from sidrec.settings import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
)
from sidrec.training.lora import LoraSettings
from sidrec.types import Task


@dataclass(frozen=True, kw_only=True)
class TowerSettings(Settings):
    """Text tower: its pretrained encoder and how it runs.

    Attributes:
        encoder: Hub name, folder, or ``package:NAME/FOLDER``.
        revision: Branch, tag or commit on the hub; None takes the newest.
        pooling: ``mean`` of the token states, or the state of the first token (``cls``) or of the
            ``last_token``; None takes what the encoder's folder says, else ``mean``.
        normalize: Embeddings of length 1, compared by their cosine; without, by inner product,
            for which ``loss.temperature`` is set anew. None takes what the folder says, else true.
        query_prompt: Text before every query; None takes the folder's, else none.
        item_prompt: Text before every item text; None takes the folder's, else none.
        dropout: Probability in [0, 1) of every dropout of the encoder; None keeps its own.
        length_groups: Groups of similar length per batch, each padded on its own; speed only.
        grad_cache_chunk: Texts whose activations are in memory at a time; None for all. Memory
            only: the gradient is that of the whole batch.
        torch_compile: Compile the encoder when training begins; speed only, rounding aside.
        activation_checkpointing: Keep only the inputs of each block and compute the block again in
            the backward pass: less memory, slower.
        lora: Adapters, which alone are trained; None trains all weights.
    """

    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    revision: str | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    query_prompt: str | None = None
    item_prompt: str | None = None
    dropout: Probability | None = None
    length_groups: PositiveInt = 4
    grad_cache_chunk: PositiveInt | None = None
    torch_compile: bool = False
    activation_checkpointing: bool = False
    lora: LoraSettings | None = None


@dataclass(frozen=True, kw_only=True)
class LossSettings(Settings):
    """Contrastive loss of both tasks.

    Attributes:
        temperature: Softmax temperature, unitless, ``> 0``; cosines are divided by it.
        query_item_weight: Factor of the search loss, ``>= 0``.
        item_item_weight: Factor of the recommendation loss, ``>= 0``.
        symmetric: Also score the left sides against each right side.
        logq_correction: Tasks whose scores are reduced by the candidate's log sampling probability.
    """

    temperature: PositiveFloat = 0.05
    query_item_weight: NonNegativeFloat = 1.0
    item_item_weight: NonNegativeFloat = 1.0
    symmetric: bool = False
    logq_correction: tuple[Task, ...] = ("recommendation",)


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(Settings):
    """Dense retrieval over the catalogue, in validation and test.

    Attributes:
        history_items: Most recent items whose mean embedding represents a user.
        encode_batch_size: Texts per forward pass; speed only.
    """

    history_items: PositiveInt = 5
    encode_batch_size: PositiveInt = 256
