"""Gradient caching: contrastive batches larger than memory, with the exact gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidrec.types import TextTokens


def embed_in_chunks(
    tower: Callable[[TextTokens], Tensor], tokens: TextTokens, *, chunk_size: int
) -> Float[Tensor, "text dim"]:
    """Embed a batch so that the activations of only one chunk are in memory at a time.

    The forward pass keeps only the embeddings. The loss over all of them gives the gradient of
    each. The backward pass then runs every chunk again, with the same dropout, and propagates that
    gradient. The result is the gradient of the whole batch, for twice the forward work. It is one
    backward pass to DDP, so gradients are reduced once.

    Args:
        tower: Maps tokens to embeddings, row by row.
        tokens: Tokens of the batch.
        chunk_size: Texts per chunk, 1 or more.

    Source:
        GradCache, Gao et al. 2021 (https://arxiv.org/abs/2101.06983). Differs: autograd's
        recomputation in place of a hand-written second pass.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    lengths, parts = tokens.lengths_on_host(), []
    for first in range(0, len(tokens.ids), chunk_size):
        rows, own = slice(first, first + chunk_size), lengths[first : first + chunk_size]
        chunk = TextTokens(tokens.ids[rows, : max(own)], tokens.mask[rows, : max(own)], own)
        parts.append(
            checkpoint(tower, chunk, use_reentrant=False, preserve_rng_state=True)  # again, later
        )
    return torch.cat(parts)
