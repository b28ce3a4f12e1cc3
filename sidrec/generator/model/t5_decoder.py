"""T5 decoding steps for many short beams over one source, without copying the source per beam."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import Step
from sidrec.kernels.t5_forward import code_logits

NormalizeOver = Literal["level", "vocabulary"]


class StepDecoder:
    """Decoder of Semantic IDs on a model of transformers; ``start`` returns the steps of a batch.

    Args:
        model: Encoder-decoder in eval mode whose head has rows for the codes.
        level_token_ids: Token of each code, one tensor per level.
        normalize_over: Tokens over which the probabilities of a step sum to one: ``level``, all
            codes of the level, allowed or not; or ``vocabulary``, all tokens, as transformers'
            ``generate`` does, at the cost of the whole head.

    Raises:
        ConfigError: If the model has no ``decoder_start_token_id``.
    """

    steps: ClassVar[type["CachedSteps"]]

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
        """Return the steps of a batch, given its encoder output.

        Args:
            source: Last hidden states of ``model.get_encoder()``.
            source_mask: True on tokens, False on padding; at least one True in each row.
            level_token_ids: Tokens of the batch's code space where each task has its own, one
                tensor per level of the trie; None takes the decoder's.

        Raises:
            RuntimeError: If the model is in training mode, where dropout is on.
        """
        tokens = level_token_ids or self.level_token_ids
        return self.steps(
            self.model, source, source_mask, tokens, normalize_over=self.normalize_over
        )


class CachedSteps(ABC):
    """Cache of one batch; a :class:`sidrec.generator.decoding.beam_search.Step`.

    Args:
        model: Model of transformers in evaluation mode.
        source: Hidden states of what is read before the first code.
        source_mask: True on real positions of ``source``.
        level_token_ids: Token of each code, one tensor per level.
        normalize_over: See ``StepDecoder``.

    Raises:
        RuntimeError: If the model is in training mode, where dropout is on.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        source: Float[Tensor, "*any dim"],
        source_mask: Bool[Tensor, "request token"],
        level_token_ids: list[Int[Tensor, " _"]],
        *,
        normalize_over: NormalizeOver,
    ) -> None:
        if model.training:
            name = type(self).__name__
            raise RuntimeError(f"{name} needs model.eval(): dropout is on in training mode.")
        self._model, self._normalize_over = model, normalize_over
        self._level_token_ids = [ids.to(source.device) for ids in level_token_ids]
        self._ancestors = source_mask.new_zeros((len(source), 1, 0))  # [request, beam, earlier]

    @abstractmethod
    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return float32 log-probabilities of the codes of ``level``, see ``Step``."""

    def _tokens(
        self, level: int, codes: Int[Tensor, "request beam"]
    ) -> Int[Tensor, "request beam"]:
        """Return the decoder's input tokens: the start token, or those of the last codes."""
        if level == 0:
            return torch.full_like(codes, self._model.config.decoder_start_token_id)
        return self._level_token_ids[level - 1][codes]

    def _with_ancestors(
        self, parent: Int[Tensor, "request beam"]
    ) -> Bool[Tensor, "request beam earlier"]:
        """Add the beams of a level; return which of all beams each sees: ancestors and itself."""
        num_requests, num_beams = parent.shape
        earlier = self._ancestors.shape[2]
        inherited = self._ancestors.gather(1, parent[..., None].expand(-1, -1, earlier))
        itself = torch.eye(num_beams, dtype=torch.bool, device=parent.device)
        itself = itself.expand(num_requests, num_beams, num_beams)
        self._ancestors = torch.cat([inherited, itself], dim=2)
        return self._ancestors

    def _log_probabilities(
        self, level: int, hidden: Float[Tensor, "request beam dim"]
    ) -> Float[Tensor, "request beam code"]:
        """Return the log-probabilities of a level's codes, given the model's last hidden states."""
        ids = self._level_token_ids[level]
        if self._normalize_over == "vocabulary":
            logits = code_logits(self._model, hidden, slice(None)).float()
            return logits[..., ids] - logits.logsumexp(dim=-1, keepdim=True)
        return code_logits(self._model, hidden, ids).float().log_softmax(dim=-1)


class T5Steps(CachedSteps):
    """Cache of one batch for :class:`T5Decoder`."""

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
        self._blocks = list(self._model.decoder.block)
        self._heads = self._blocks[0].layer[0].SelfAttention.n_heads
        self._source_mask = source_mask[:, None, None, :]  # [request, 1, 1, token]
        self._source_cache = [
            self._keys_and_values(block.layer[1].EncDecAttention, source) for block in self._blocks
        ]
        depth = len(self._level_token_ids)
        first = self._blocks[0].layer[0].SelfAttention
        self._position_bias: Float[Tensor, "head to from"] = first.compute_bias(depth, depth)[0]
        self._seen: list[tuple[Tensor, Tensor]] = []  # per block: [request, head, earlier, dim]
        self._level_of = torch.zeros(0, dtype=torch.long, device=source.device)  # [earlier]

    @torch.no_grad()
    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return float32 log-probabilities of the codes of ``level``, see ``Step``."""
        hidden = self._model.decoder.embed_tokens(self._tokens(level, codes))
        bias = self._tree_bias(level, parent)
        for index, block in enumerate(self._blocks):
            hidden = self._attend_to_ancestors(index, block.layer[0], hidden, bias)
            hidden = self._attend_to_source(index, block.layer[1], hidden)
            hidden = block.layer[-1](hidden)
        hidden = self._model.decoder.final_layer_norm(hidden)
        if self._model.config.scale_decoder_outputs:
            hidden = hidden * self._model.model_dim**-0.5
        return self._log_probabilities(level, hidden)

    def _tree_bias(
        self, level: int, parent: Int[Tensor, "request beam"]
    ) -> Float[Tensor, "request head beam earlier"]:
        """Return T5's position bias to each beam's ancestors and itself; -inf to other beams."""
        own = parent.new_full((parent.shape[1],), level)
        self._level_of = torch.cat([self._level_of, own])
        by_distance = self._position_bias[:, level, self._level_of]  # [head, earlier]
        seen = self._with_ancestors(parent)[:, None]
        return torch.where(seen, by_distance[None, :, None, :], float("-inf"))

    def _attend_to_ancestors(
        self, index: int, layer: nn.Module, hidden: Tensor, bias: Tensor
    ) -> Tensor:
        attention: Any = layer.SelfAttention
        normed = layer.layer_norm(hidden)  # type: ignore[operator]
        keys, values = self._keys_and_values(attention, normed)
        if index < len(self._seen):
            keys = torch.cat([self._seen[index][0], keys], dim=2)
            values = torch.cat([self._seen[index][1], values], dim=2)
            self._seen[index] = (keys, values)
        else:
            self._seen.append((keys, values))
        return hidden + self._attend(attention, normed, keys, values, bias)

    def _attend_to_source(self, index: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        attention: Any = layer.EncDecAttention
        normed = layer.layer_norm(hidden)  # type: ignore[operator]
        keys, values = self._source_cache[index]
        return hidden + self._attend(attention, normed, keys, values, self._source_mask)

    def _attend(
        self,
        attention: Any,  # noqa: ANN401
        normed: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        query = self._split_heads(attention.q(normed))
        if mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
        output: Tensor = attention.o(mixed.transpose(1, 2).flatten(2))
        return output

    def _keys_and_values(self, attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        return self._split_heads(attention.k(states)), self._split_heads(attention.v(states))

    def _split_heads(
        self, states: Float[Tensor, "request token inner"]
    ) -> Float[Tensor, "request head token dim"]:
        return states.view(*states.shape[:2], self._heads, -1).transpose(1, 2)


class T5Decoder(StepDecoder):
    """Step-wise decoding with the weights of transformers' ``T5ForConditionalGeneration``.

    Computes the same numbers as the model's own forward:

    - cross-attention makes keys and values once per request; the beams of a request are its
      queries;
    - self-attention keeps the keys of all earlier beams and masks all but each beam's ancestors,
      so no cache is reordered;
    - the output head is cut to the tokens of the level.

    ``model`` is a ``T5ForConditionalGeneration`` of any size, gated or not, tied or not.
    """

    steps = T5Steps
