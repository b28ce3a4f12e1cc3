"""What is the same for every model that is asked step by step: its tokens, and two refusals."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.beams import Step

NormalizeOver = Literal["level", "vocabulary"]


class StepDecoder(ABC):
    """A model of transformers and the tokens of its codes; ``start`` gives the steps of a batch.

    Args:
        model: An encoder-decoder in eval mode; the rows of its head for the codes must exist.
        level_token_ids: Token of each code, one tensor per level.
        normalize_over: What the probabilities of a step sum to one over: ``level``, all codes of
            the level, allowed or not (every token that can stand there); or ``vocabulary``, all
            tokens, which is what transformers' ``generate`` does and costs the whole head.

    Raises:
        ConfigError: If the model names no ``decoder_start_token_id``.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers is untyped)
        level_token_ids: list[Int[Tensor, " _"]],
        *,
        normalize_over: NormalizeOver,
    ) -> None:
        if model.config.decoder_start_token_id is None:
            raise ConfigError(
                "The model's config has no decoder_start_token_id; set it to the token that "
                "begins a target, for a T5 usually pad_token_id."
            )
        self.model, self.level_token_ids = model, level_token_ids
        self.normalize_over = normalize_over

    @torch.no_grad()
    def start(
        self,
        source: Float[Tensor, "request token dim"],
        source_mask: Bool[Tensor, "request token"],
        *,
        level_token_ids: list[Int[Tensor, " _"]] | None = None,
    ) -> Step:
        """Read the encoder's output of a batch and return its first step.

        Args:
            source: Last hidden states of the encoder, as ``model.get_encoder()`` gives them.
            source_mask: True on tokens, False on padding; at least one True in each row.
            level_token_ids: Tokens of this batch's own code space, where tasks have codes of their
                own, as long as the trie that is searched has levels; None takes the decoder's.

        Raises:
            RuntimeError: If the model is in training mode: dropout would be on.
        """
        if self.model.training:
            name = type(self).__name__
            raise RuntimeError(f"{name} needs model.eval(): dropout is on in training mode.")
        return self._steps(source, source_mask, level_token_ids or self.level_token_ids)

    @abstractmethod
    def _steps(
        self,
        source: Float[Tensor, "request token dim"],
        source_mask: Bool[Tensor, "request token"],
        level_token_ids: list[Int[Tensor, " _"]],
    ) -> Step:
        """Return the steps of one batch."""
