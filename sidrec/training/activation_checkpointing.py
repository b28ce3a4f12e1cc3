"""Activation checkpointing of transformers models."""

from typing import Any

from sidrec.errors import ConfigError


def checkpoint_activations(model: Any) -> None:  # noqa: ANN401 (transformers is untyped)
    """Keep only the inputs of each block in training; the backward pass computes the block again.

    The gradient is the same, dropout included, for one more forward pass per step.

    Args:
        model: Any ``PreTrainedModel``.

    Raises:
        ConfigError: If transformers does not support it for this model.

    Source:
        Chen et al. 2016 (https://arxiv.org/abs/1604.06174), as torch implements it.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"activation_checkpointing: transformers does not support it for {type(model).__name__}"
            "; leave it out."
        )
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
