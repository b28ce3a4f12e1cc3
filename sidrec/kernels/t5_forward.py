"""T5 forward pass for faster training, with the weights of transformers' T5.

The outputs equal those of the model's own forward up to rounding; with dropout, in distribution.
It reads the weights and calls few modules, so it is only right for a model that nothing wraps
(``is_wrapped``). ``plain_read_positions`` and ``plain_write_tokens`` are transformers' own forward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sidrec.kernels.cpu_dropout import dropout

_NOT_SEEN = -1e9  # finite, as T5's own masks are
_OWN_CODE = ("transformers.models.t5.", "transformers.activations", "torch.nn.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_wrapped(t5: nn.Module) -> bool:
    """Return whether anything changes or observes the forward of a module of the model.

    Such things are adapters, activation checkpointing, a compiled module, hooks, a wrapper, and any
    class that is not from transformers' T5 or ``torch.nn``.
    """
    return any(
        _is_changed(module) or getattr(module, "gradient_checkpointing", False)
        for module in t5.modules()
    )


def has_wrapped_decoder(t5: Any) -> bool:  # noqa: ANN401 (transformers is untyped)
    """Return whether a forward that ``T5Steps`` bypasses is changed or observed.

    ``T5Steps`` calls the linear layers, norms, embeddings and feed-forward layers as modules, so
    adapters inside them count. Activation checkpointing has no effect outside training.
    """
    bypassed = [t5, t5.decoder, t5.lm_head]
    for block in t5.decoder.block:
        if _is_changed(block):
            return True
        own, cross = block.layer[0], block.layer[1]
        bypassed += [own, own.SelfAttention, cross, cross.EncDecAttention]
    return any(map(_is_changed, bypassed))


def _is_changed(module: nn.Module) -> bool:
    return (
        not type(module).__module__.startswith(_OWN_CODE)
        or "forward" in vars(module)
        or module._compiled_call_impl is not None
        or any(getattr(module, hooks) for hooks in _HOOKS)
    )


def code_logits(
    t5: Any,  # noqa: ANN401
    hidden: Float[Tensor, "*request dim"],
    tokens: slice | Int[Tensor, " code"],
) -> Float[Tensor, "*request code"]:
    """Return the output head's logits of some tokens; a wrapped head computes all of them."""
    if _is_changed(t5.lm_head):
        logits: Tensor = t5.lm_head(hidden)[..., tokens]
        return logits
    return F.linear(hidden, t5.lm_head.weight[tokens])


def plain_read_positions(
    t5: Any,  # noqa: ANN401
    positions: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
) -> Float[Tensor, "request position dim"]:
    """Return what ``read_positions`` returns, by transformers' own forward."""
    states: Tensor = t5.encoder(
        inputs_embeds=positions, attention_mask=mask.long()
    ).last_hidden_state
    return states


def plain_write_tokens(
    t5: Any,  # noqa: ANN401
    tokens: Int[Tensor, "request token"],
    source: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
) -> Float[Tensor, "request token dim"]:
    """Return what ``write_tokens`` returns, by transformers' own forward."""
    hidden: Tensor = t5.decoder(
        input_ids=tokens,
        encoder_hidden_states=source,
        encoder_attention_mask=mask.long(),
        use_cache=False,
    ).last_hidden_state
    return _scaled(t5, hidden)


def read_positions(
    t5: Any,  # noqa: ANN401 (transformers is untyped)
    positions: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
) -> Float[Tensor, "request position dim"]:
    """Return the last hidden states of T5's encoder.

    Args:
        t5: A ``T5ForConditionalGeneration``, gated or not; dropout is active in training mode.
        positions: Input embeddings.
        mask: True on real positions, at least one in each row.
    """
    stack, rate = t5.encoder, _rate_of(t5)
    length = positions.shape[1]
    distance = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    bias = distance + _bias_of(mask)[:, None, None, :]  # [request, head, to, from], of all blocks
    hidden = dropout(positions, rate=rate)
    for block in stack.block:
        hidden = _attend_to_itself(block.layer[0], hidden, bias, rate)
        hidden = _feed_forward(block.layer[-1], hidden, rate)
    return dropout(stack.final_layer_norm(hidden), rate=rate)


def write_tokens(
    t5: Any,  # noqa: ANN401
    tokens: Int[Tensor, "request token"],
    source: Float[Tensor, "request position dim"],
    mask: Bool[Tensor, "request position"],
) -> Float[Tensor, "request token dim"]:
    """Return the last hidden states of T5's decoder for given tokens, scaled for its output head.

    The function does not compute keys and values of the source. It projects each token's query to
    the width of the source, and the attended source to the width of a value. With few tokens this
    takes a tenth of the operations.

    Args:
        t5: Model, as for ``read_positions``.
        tokens: Decoder inputs; token ``i`` attends to itself and earlier tokens.
        source: Hidden states from ``read_positions``.
        mask: Mask of ``source``.

    Source:
        DeepSeek-V2 (https://arxiv.org/abs/2405.04434), section 2.1: absorbs the projections of
        keys and values in the same way, for decoding.
    """
    stack, rate = t5.decoder, _rate_of(t5)
    length = tokens.shape[1]
    distance = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    bias = distance.masked_fill(later, _NOT_SEEN)
    hidden = dropout(stack.embed_tokens(tokens), rate=rate)
    for block in stack.block:
        hidden = _attend_to_itself(block.layer[0], hidden, bias, rate)
        hidden = _attend_to_source(block.layer[1], hidden, source, _bias_of(mask), rate)
        hidden = _feed_forward(block.layer[-1], hidden, rate)
    hidden = dropout(stack.final_layer_norm(hidden), rate=rate)
    return _scaled(t5, hidden)


def _scaled(t5: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
    return hidden * t5.model_dim**-0.5 if t5.config.scale_decoder_outputs else hidden


def _rate_of(t5: Any) -> float:  # noqa: ANN401
    return float(t5.config.dropout_rate) if t5.training else 0.0


def _bias_of(mask: Bool[Tensor, "request position"]) -> Float[Tensor, "request position"]:
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, _NOT_SEEN)


def _attend_to_itself(
    layer: Any,  # noqa: ANN401
    hidden: Float[Tensor, "request token dim"],
    bias: Float[Tensor, "#request head token token"],
    rate: float,
) -> Float[Tensor, "request token dim"]:
    attention = layer.SelfAttention
    rows, length, heads = *hidden.shape[:2], attention.n_heads
    weight = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
    joined = F.linear(layer.layer_norm(hidden), weight).view(rows, length, 3, heads, -1)
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind()  # [request, head, token, dim]
    mix = _mix if hidden.device.type == "cpu" else _mix_fused  # the fused one is slower on a CPU
    mixed = mix(query, key, value, bias, rate)
    return hidden + dropout(attention.o(mixed.transpose(1, 2).flatten(2)), rate=rate)


def _mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, rate: float) -> Tensor:
    scores = query @ key.transpose(2, 3) + bias  # [request, head, to, from]
    return dropout(torch.softmax(scores, dim=-1), rate=rate) @ value


def _mix_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, rate: float) -> Tensor:
    wide = bias.to(query.dtype).expand(len(query), -1, -1, -1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=wide, dropout_p=rate, scale=1.0
    )


def _attend_to_source(
    layer: Any,  # noqa: ANN401
    hidden: Float[Tensor, "request token dim"],
    source: Float[Tensor, "request position dim"],
    bias: Float[Tensor, "request position"],
    rate: float,
) -> Float[Tensor, "request token dim"]:
    attention = layer.EncDecAttention
    rows, length, dim = hidden.shape
    heads = attention.n_heads
    of_head = (heads, -1, dim)  # weights of keys and values, head by head: [head, inner, dim]
    query = attention.q(layer.layer_norm(hidden)).view(rows * length, heads, -1).transpose(0, 1)
    wide = query @ attention.k.weight.view(of_head)  # [head, request · token, dim]
    wide = wide.view(heads, rows, length, dim).transpose(0, 1).flatten(1, 2)
    scores = wide @ source.transpose(1, 2) + bias[:, None]  # [request, head · token, position]
    mixed = dropout(torch.softmax(scores, dim=-1), rate=rate) @ source
    mixed = mixed.view(rows, heads, length, dim).transpose(0, 1).flatten(1, 2)
    value = mixed @ attention.v.weight.view(of_head).transpose(1, 2)
    value = value.view(heads, rows, length, -1).permute(1, 2, 0, 3).flatten(2)
    return hidden + dropout(attention.o(value), rate=rate)


def _feed_forward(
    layer: Any,  # noqa: ANN401
    hidden: Float[Tensor, "request token dim"],
    rate: float,
) -> Float[Tensor, "request token dim"]:
    dense, normed = layer.DenseReluDense, layer.layer_norm(hidden)
    if hasattr(dense, "wi"):
        inner = dense.act(dense.wi(normed))
    else:
        inner = dense.act(dense.wi_0(normed)) * dense.wi_1(normed)
    return hidden + dropout(dense.wo(dropout(inner, rate=rate)), rate=rate)
