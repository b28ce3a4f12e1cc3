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
    parts = []
    for first in range(0, len(tokens.ids), chunk_size):
        ids, mask = tokens.ids[first : first + chunk_size], tokens.mask[first : first + chunk_size]
        longest = int(mask.sum(dim=1).max())
        parts.append(_embed_again(tower, ids[:, :longest], mask[:, :longest]))
    return torch.cat(parts)


def _embed_again(tower: Callable[[TextTokens], Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        return tower(TextTokens(ids, mask))

    embeddings: Tensor = checkpoint(run, ids, mask, use_reentrant=False, preserve_rng_state=True)
    return embeddings
