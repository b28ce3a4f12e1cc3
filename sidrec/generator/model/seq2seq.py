"""Decoding steps of any encoder-decoder of transformers, with its own forward and cache."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.model.t5_decoder import CachedSteps, NormalizeOver, StepDecoder


class Seq2SeqSteps(CachedSteps):
    """Cache of one batch for :class:`Seq2SeqDecoder`."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        source: Float[Tensor, "request token dim"],
        source_mask: Bool[Tensor, "request token"],
        level_token_ids: list[Int[Tensor, " _"]],
        *,
        normalize_over: NormalizeOver,
    ) -> None:
        super().__init__(model, source, source_mask, level_token_ids, normalize_over=normalize_over)
        self._source, self._mask = source, source_mask.long()
        self._cache: Any = None
        self._num_beams = 1  # of the previous call

    @torch.no_grad()
    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return float32 log-probabilities of the codes of ``level``, see ``Step``."""
        from transformers.modeling_outputs import BaseModelOutput  # late: heavy

        num_requests, num_beams = parent.shape
        request = torch.arange(num_requests, device=parent.device)[:, None]
        if level > 0:
            self._cache.reorder_cache((request * self._num_beams + parent).flatten())
        rows = request.expand(-1, num_beams).flatten()
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._source[rows]),
            attention_mask=self._mask[rows],
            decoder_input_ids=self._tokens(level, codes).view(-1, 1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self._num_beams = output.past_key_values, num_beams
        logits: Tensor = output.logits[:, -1].float().view(num_requests, num_beams, -1)
        own = logits[..., self._level_token_ids[level]]
        if self._normalize_over == "vocabulary":
            return own - logits.logsumexp(dim=-1, keepdim=True)
        return own.log_softmax(dim=-1)


class Seq2SeqDecoder(StepDecoder):
    """Step-wise decoding with any ``AutoModelForSeq2SeqLM``, such as BART, mT5 or Pegasus.

    The model's own forward runs once per step, with each beam as a row of the batch and its
    ``EncoderDecoderCache`` reordered after every step. The source is copied for every beam, so
    this is slower than ``T5Decoder``; use that for a T5.

    Raises:
        ConfigError: If the model is not an encoder-decoder or has no ``decoder_start_token_id``.
    """

    steps = Seq2SeqSteps

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers is untyped)
        level_token_ids: list[Int[Tensor, " _"]],
        *,
        normalize_over: NormalizeOver,
    ) -> None:
        if not model.config.is_encoder_decoder:
            raise ConfigError(
                f"{type(model).__name__} is not an encoder-decoder; give one that is."
            )
        super().__init__(model, level_token_ids, normalize_over=normalize_over)
