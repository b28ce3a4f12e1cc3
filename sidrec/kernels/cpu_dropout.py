"""Dropout with a mask that is fast to draw on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_ATTENTION = "sidrec_cheap_dropout"
_LEVELS = 1 << 16  # each entry uses 16 random bits, so one 64-bit draw serves four entries


def dropout(states: Float[Tensor, "*any"], *, rate: float) -> Float[Tensor, "*any"]:
    """Set entries to 0 with probability ``rate``; scale the others to keep the mean.

    On a CPU, torch draws one number per entry, which takes about a sixth of a T5 training step.
    Here one 64-bit draw from torch's generator serves four entries. The same seed gives the same
    mask. On other devices and in compiled code, torch's own dropout runs and gives other masks.

    Args:
        states: Any shape.
        rate: In [0, 1); 0 returns ``states`` itself. A CPU rounds it to a multiple of 1 / 65,536.
    """
    if rate == 0:
        return states
    if states.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(states, rate)
    dropped = round(rate * _LEVELS)
    words = torch.empty((states.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(1 << 63), None)  # all 64 bits
    bits = words.view(torch.int16)[: states.numel()].view(states.shape)
    kept = torch.empty(states.shape, dtype=states.dtype)
    torch.ge(bits, dropped - _LEVELS // 2, out=kept)  # 0 or 1
    return states * kept.mul_(_LEVELS / (_LEVELS - dropped))


class CheapDropout(nn.Dropout):
    """Dropout module that takes its masks from ``dropout``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return ``input``, with entries dropped during training."""
        return dropout(input, rate=self.p) if self.training else input


def use_cheap_dropout(model: Any) -> None:  # noqa: ANN401 (transformers is untyped)
    """Replace the dropout of a transformers encoder by ``dropout``, in place.

    The function replaces all dropout modules. An encoder with ``sdpa`` attention also gets
    ``_attend``, because torch's fused attention is slow on a CPU when dropout is active.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CheapDropout(child.p).train(child.training))
    if model.config._attn_implementation == "sdpa":
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        AttentionInterface.register(_ATTENTION, _attend)
        AttentionMaskInterface.register(_ATTENTION, _mask)
        model.set_attn_implementation(_ATTENTION)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """Return ``sdpa``'s mask; off the CPU also where nothing is padded: a GPU would have to say."""
    from transformers.masking_utils import sdpa_mask

    if torch.device(kwargs.get("device", "cpu")).type != "cpu":
        kwargs["allow_is_bidirectional_skip"] = False
    found: Tensor | None = sdpa_mask(*args, **kwargs)
    return found


def _attend(
    module: nn.Module,
    query: Float[Tensor, "text head to dim"],
    key: Float[Tensor, "text key_head from dim"],
    value: Float[Tensor, "text key_head from dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Float[Tensor, "text to head dim"], None]:
    """Attend as transformers' ``sdpa``, by two products where that is equivalent and faster."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_usual = (
        key.shape[1] == query.shape[1]
        and kwargs.get("position_bias") is None
        and not (attention_mask is None and is_causal)
    )
    if dropout == 0 or query.device.type != "cpu" or not is_usual:
        mixed, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return mixed, None
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = _drop(torch.softmax(scores, dim=-1), rate=dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


_drop = dropout  # ``_attend`` has an argument named ``dropout``
