"""Settings of the joint generator and of its data module."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from sidrec.errors import ConfigError
from sidrec.generator.decoding.search_strategy import Decoding, DecodingMode
from sidrec.settings import (
    NonNegativeFloat,
    PositiveInt,
    Probability,
    Settings,
)
from sidrec.training.lora import LoraSettings


@dataclass(frozen=True, kw_only=True)
class LanguageModelSettings(Settings):
    """Language model of the generator: pretrained, or from scratch with a tokenizer of the corpus.

    Attributes:
        pretrained: Hub name or folder of a pretrained model; None starts from scratch.
        revision: Branch, tag or commit of ``pretrained`` on the hub.
        text_vocabulary_size: Maximum number of text tokens of a model from scratch.
        codes_from_items: Initialize the codes' embeddings from the item embeddings, not at random.
        activation_checkpointing: Keep only the inputs of each block and compute the block again in
            the backward pass: less memory, slower.
        lora: Adapters of a pretrained model, whose own weights stay frozen. Trained are the
            adapters, the embeddings of the codes, and all that is not the language model. None
            trains all weights.

    Raises:
        ConfigError: If ``lora`` is given without ``pretrained``.
    """

    name: ClassVar[str]  # of the setting, for messages

    pretrained: str | None = None
    revision: str | None = None
    text_vocabulary_size: PositiveInt = 4000
    codes_from_items: bool = True
    activation_checkpointing: bool = False
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.pretrained is None:
            raise ConfigError(
                f"{self.name}.lora adapts a pretrained model, but {self.name}.pretrained is "
                "missing; name one, or leave lora out."
            )


@dataclass(frozen=True, kw_only=True)
class T5Shape(Settings):
    """Architecture of a T5 that starts from scratch: fields of ``transformers.T5Config``.

    Attributes:
        d_model: Width of the hidden states.
        d_kv: Width of one attention head.
        d_ff: Width of the feed-forward layers.
        num_layers: Blocks of the encoder.
        num_decoder_layers: Blocks of the decoder.
        num_heads: Attention heads per block.
        dropout_rate: Dropout probability in [0, 1).
        feed_forward_proj: Activation: ``relu`` or ``gated-gelu``.
        tie_word_embeddings: Share the weights of input and output embeddings.
        other: Further fields of ``T5Config``.
    """

    d_model: PositiveInt = 128
    d_kv: PositiveInt = 64
    d_ff: PositiveInt = 1024
    num_layers: PositiveInt = 4
    num_decoder_layers: PositiveInt = 4
    num_heads: PositiveInt = 6
    dropout_rate: Probability = 0.1
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = False
    other: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``T5Config``."""
        named = asdict(self)
        other: dict[str, Any] = named.pop("other")
        return named | other


@dataclass(frozen=True, kw_only=True)
class T5Settings(LanguageModelSettings):
    """T5 as generator.

    Attributes:
        shape: Architecture of a T5 from scratch; unused with ``pretrained``.
        torch_compile: Compile the training forward; changes results by rounding only.
    """

    name = "t5"

    shape: T5Shape = T5Shape()
    torch_compile: bool = False


@dataclass(frozen=True, kw_only=True)
class GeneratorLossSettings(Settings):
    """Cross-entropy over the levels, for both tasks.

    Attributes:
        label_smoothing: Share of the target's probability spread over its level, in [0, 1).
        search_weight: Factor of the search loss, ``>= 0``.
        recommendation_weight: Factor of the recommendation loss, ``>= 0``.
    """

    label_smoothing: Probability = 0.0
    search_weight: NonNegativeFloat = 1.0
    recommendation_weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """Decoding of ranked lists.

    Attributes:
        num_beams: Beam width, at least ``top_k``; ``exact`` ignores it.
        top_k: Length of the lists.
        decoding: ``beam``, ``diverse`` (groups of beams that avoid each other's codes) or
            ``exact`` (scores every Semantic ID).
        num_groups: Groups of ``diverse``, a divisor of ``num_beams``; 1 otherwise.
        diversity_penalty: Penalty of ``diverse``, in nats for each beam of an earlier group.
    """

    num_beams: PositiveInt = 60
    top_k: PositiveInt = 30
    decoding: DecodingMode = "beam"
    num_groups: PositiveInt = 1
    diversity_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.strategy().check_width(num_beams=self.num_beams, top_k=self.top_k)

    def strategy(self) -> Decoding:
        """Return the search strategy with its settings."""
        return Decoding(self.decoding, self.num_groups, self.diversity_penalty)


@dataclass(frozen=True, kw_only=True)
class GeneratorTaskSettings(Settings):
    """Shares of both tasks in the training batches.

    Attributes:
        search_share: Share of the batches that are search; 0 switches the task off.
        recommendation_share: Share of the batches that are recommendation; 0 switches it off.
        indexing_share: Share of the search examples that map an item's text to its own ID, in
            [0, 1).
        indexing_text: ``whole``: the item's text; ``words``: 2 to 8 words of it, drawn anew each
            time, in a row or as a set. ``words`` needs a generator that reads its own tokens
            (``inputs.text_input`` ``tokens`` or ``tokens_and_states``).
    """

    search_share: NonNegativeFloat = 0.5
    recommendation_share: NonNegativeFloat = 0.5
    indexing_share: Probability = 0.15
    indexing_text: Literal["whole", "words"] = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.indexing_text == "words" and not self.indexing_share * self.search_share:
            raise ConfigError(
                "data.tasks.indexing_text words needs search_share and indexing_share above 0."
            )


@dataclass(frozen=True, kw_only=True)
class HistorySettings(Settings):
    """User histories and their training targets.

    Attributes:
        max_history_items: Number of most recent items of a history to read.
        target_window: Number of next interactions from which a training target is drawn.
        history_dropout: Probability in [0, 1) that an item of a training history is left out.
        targets_per_user: Number of a user's last interactions to use as targets, so that long
            histories do not outweigh the others; None takes all.
    """

    max_history_items: PositiveInt = 30
    target_window: PositiveInt = 1
    history_dropout: Probability = 0.0
    targets_per_user: PositiveInt | None = 40


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation requests.

    Attributes:
        batch_size: Requests per decoding batch and rank.
        valid_requests: Validation requests per task, evenly spaced; None takes all.
    """

    batch_size: PositiveInt = 64
    valid_requests: PositiveInt | None = 500
