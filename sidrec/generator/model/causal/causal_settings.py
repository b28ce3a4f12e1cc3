"""Settings of a causal language model as generator."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sidrec.generator.model.generator_settings import LanguageModelSettings
from sidrec.settings import PositiveInt, Probability, Settings


@dataclass(frozen=True, kw_only=True)
class CausalShape(Settings):
    """Architecture of a causal model from scratch: fields of its configuration in transformers.

    Attributes:
        model_type: Family in transformers' ``AutoConfig``, such as ``qwen3``, ``llama``.
        hidden_size: Width of the hidden states.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Query heads per block.
        num_key_value_heads: Key and value heads per block; divides the query heads.
        head_dim: Width of one attention head; None: ``hidden_size / num_attention_heads``, the
            only one in families without this field, such as ``qwen2``.
        attention_dropout: Dropout probability of attention weights, in [0, 1).
        tie_word_embeddings: Output embeddings are the input embeddings.
        other: Further fields of the family's configuration.
    """

    model_type: str = "qwen3"
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 512
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 2
    head_dim: PositiveInt | None = None
    attention_dropout: Probability = 0.1
    tie_word_embeddings: bool = False
    other: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``AutoConfig.for_model``."""
        named = asdict(self)
        other: dict[str, Any] = named.pop("other")
        return named | other


@dataclass(frozen=True, kw_only=True)
class CausalLmSettings(LanguageModelSettings):
    """Causal language model as generator; ``pretrained`` is any ``AutoModelForCausalLM``.

    Attributes:
        shape: Architecture of a model from scratch; unused with ``pretrained``.
        dropout: Dropout probability of the inputs in training, in [0, 1).
        all_positions: Train recommendation on every item of a history in one pass, each predicted
            from the items before it, instead of on the target alone. The prior takes no part in
            these steps: its weights are fitted on the validation split alone.
    """

    name = "causal_lm"

    shape: CausalShape = CausalShape()
    dropout: Probability = 0.1
    all_positions: bool = False

    def training_options(self) -> dict[str, Any]:
        """Return the arguments of ``CausalGenerator`` that only matter in training."""
        return {"input_dropout": self.dropout, "all_positions": self.all_positions}
