"""A causal language model over prompts and codes: one training pass, or one step per level.

The functions call the model's own layers with a mask and positions of sidrec's. Tokens that are
alternatives to each other stand side by side in one row, each seeing only what comes before it in
its own alternative (tree attention, https://arxiv.org/abs/2305.09781). So a prompt is stored once
for all of its beams, and one pass predicts every item of a history.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sidrec.generator.model.t5_decoder import CachedSteps, NormalizeOver


class Prompts(NamedTuple):
    """Prompts of a batch, read once.

    Attributes:
        cache: Keys and values of each block, ``[request, head, position, dim]``.
        mask: True on real positions.
        last: Hidden state of each prompt's last real position.
    """

    cache: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "request position"]
    last: Float[Tensor, "request dim"]


def read_prompts(
    model: Any,  # noqa: ANN401 (transformers is untyped)
    positions: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
) -> Prompts:
    """Return the keys and values of the prompts, one copy per request.

    Args:
        model: Causal language model.
        positions: Input embeddings.
        mask: True on real positions, at least one in each row; padding stands behind them.
    """
    from transformers import DynamicCache  # late: heavy

    cache = DynamicCache()
    hidden = _hidden(model, positions, _left_to_right(mask), _numbers(mask), cache)
    last = hidden.take_along_dim(mask.sum(dim=1)[:, None, None] - 1, dim=1)[:, 0]
    return Prompts([(layer.keys, layer.values) for layer in cache.layers], mask, last)


def states_before_codes(
    model: Any,  # noqa: ANN401
    positions: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
    codes: Float[Tensor, "request code dim"],
) -> Float[Tensor, "request state dim"]:
    """Return the hidden states that predict the first code and each one after a given code.

    Args:
        model: Causal language model.
        positions: Input embeddings of the prompts.
        mask: As for ``read_prompts``.
        codes: Input embeddings of the codes behind each prompt.
    """
    whole = torch.cat([mask, mask.new_ones(codes.shape[:2])], dim=1)
    inputs = torch.cat([positions, codes.to(positions.dtype)], dim=1)
    hidden = _hidden(model, inputs, _left_to_right(whole), _numbers(whole), None)
    last = hidden.take_along_dim(mask.sum(dim=1)[:, None, None] - 1, dim=1)
    return torch.cat([last, hidden[:, mask.shape[1] :]], dim=1)


def states_of_branches(
    model: Any,  # noqa: ANN401
    positions: Float[Tensor, "request position dim"],
    num_seen: Int[Tensor, " branch"],
    branches: Float[Tensor, "request branch token dim"],
) -> Float[Tensor, "request branch token dim"]:
    """Return the hidden states of alternative continuations of each prompt, in one pass.

    A branch sees the first positions of the prompt and itself, so its states equal those of a
    prompt that ends there.

    Args:
        model: Causal language model.
        positions: Input embeddings of the prompts; padding behind them is never seen.
        num_seen: How many positions of the prompt each branch continues, at least 0.
        branches: Input embeddings of the branches' tokens.
    """
    rows, width = positions.shape[:2]
    num_branches, length = branches.shape[1:3]
    here = torch.arange(width, device=positions.device)
    token = torch.arange(length, device=positions.device)
    own = torch.eye(num_branches, dtype=torch.bool, device=positions.device)
    within = (own[:, None, :, None] & (token[:, None] >= token)[None, :, None]).flatten(2)
    prompt = (here < num_seen[:, None]).repeat_interleave(length, dim=0)
    above = F.pad(here[:, None] >= here, (0, num_branches * length))
    seen = torch.cat([above, torch.cat([prompt, within.flatten(0, 1)], dim=1)])
    number = torch.cat([here, (num_seen[:, None] + token).flatten()])
    inputs = torch.cat([positions, branches.to(positions.dtype).flatten(1, 2)], dim=1)
    hidden = _hidden(
        model, inputs, seen.expand(rows, -1, -1), number.expand(rows, -1).contiguous(), None
    )
    return hidden[:, width:].view(branches.shape)


class CausalSteps(CachedSteps):
    """Cache of one batch behind its prompts.

    The beams of a request are tokens of one row behind its prompt. The cache keeps the keys of all
    earlier beams, and each beam sees the prompt, its own ancestors and itself, so nothing is
    copied or reordered when beams change places.

    Args:
        model: Causal language model in evaluation mode.
        prompts: From ``read_prompts``; they stay as they are, so several searches can share them.
        level_token_ids: Token of each code, one tensor per level.
        normalize_over: See ``StepDecoder``.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        prompts: Prompts,
        level_token_ids: list[Int[Tensor, " _"]],
        *,
        normalize_over: NormalizeOver,
    ) -> None:
        from transformers import DynamicCache  # late: heavy

        super().__init__(
            model, prompts.last, prompts.mask, level_token_ids, normalize_over=normalize_over
        )
        self._prompts, self._cache = prompts, DynamicCache()
        for block, (keys, values) in enumerate(prompts.cache):
            self._cache.update(keys, values, block)

    @torch.no_grad()
    def __call__(
        self,
        level: int,
        parent: Int[Tensor, "request beam"],
        codes: Int[Tensor, "request beam"],
    ) -> Float[Tensor, "request beam code"]:
        """Return float32 log-probabilities of the codes of ``level``, see ``Step``."""
        if level == 0:
            return self._log_probabilities(0, self._prompts.last[:, None])
        inputs = self._model.get_input_embeddings()(self._tokens(level, codes))
        number = self._prompts.mask.sum(dim=1, keepdim=True) + (level - 1)
        prompt = self._prompts.mask[:, None].expand(-1, codes.shape[1], -1)
        seen = torch.cat([prompt, self._with_ancestors(parent)], dim=2)
        hidden = _hidden(self._model, inputs, seen, number.expand(codes.shape), self._cache)
        return self._log_probabilities(level, hidden)


def _hidden(
    model: Any,  # noqa: ANN401
    inputs: Float[Tensor, "request token dim"],
    seen: Bool[Tensor, "request token position"],
    number: Int[Tensor, "request token"],
    cache: Any,  # noqa: ANN401
) -> Float[Tensor, "request token dim"]:
    """Return the model's last hidden states, with each token's view and place given."""
    output = model.base_model(
        inputs_embeds=inputs,
        attention_mask=seen[:, None],  # one for all heads; transformers takes it as it is
        position_ids=number,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _left_to_right(
    mask: Bool[Tensor, "request position"],
) -> Bool[Tensor, "request position position"]:
    here = torch.arange(mask.shape[1], device=mask.device)
    return (here[:, None] >= here) & mask[:, None]


def _numbers(mask: Bool[Tensor, "request position"]) -> Int[Tensor, "request position"]:
    """Return the place of each real position; padding has none of its own."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
