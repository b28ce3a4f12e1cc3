"""In-batch contrastive loss over all ranks, and gradient caching for batches above memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidrec.distributed import gather_equal_rows, gather_with_grad, rank_and_world_size
from sidrec.types import TextTokens


def contrastive_loss(
    anchors: Float[Tensor, "pair dim"],
    positives: Float[Tensor, "pair dim"],
    *,
    temperature: float,
    right_item: Int[Tensor, " pair"],
    known_positives: Int[Tensor, "pair known"],
    right_log_frequency: Float[Tensor, " pair"] | None,
    symmetric: bool,
) -> Float[Tensor, ""]:
    """Score each anchor against every positive of the global batch; its own must win.

    Each rank scores only its own anchors (with ``symmetric`` also its own positives against all
    anchors), so the mean of gradients that DDP takes equals the gradient of one device holding the
    whole batch. Candidates that are not negatives for the anchor are left out of the softmax: the
    same item again, and every known positive.

    Args:
        anchors: Embeddings of the left side of each pair, usually of length 1.
        positives: Row ``i`` belongs to ``anchors[i]``.
        temperature: Softmax temperature, unitless, ``> 0``.
        right_item: item_index of each positive.
        known_positives: item_index of the items that are not negatives for the anchor, padded with
            -1. Every rank may have its own width.
        right_log_frequency: ln(probability that the sampler draws the positive), subtracted from
            its score so that frequently drawn items are not penalized; None applies no correction.
        symmetric: Average with the loss that scores each positive against all anchors.

    Returns:
        Mean over this rank's pairs, in nats.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source:
        van den Oord et al. 2018, eq. 4 (https://arxiv.org/abs/1807.03748); logQ correction of
        Yi et al. 2019 (https://doi.org/10.1145/3298689.3346996).
        Differs: negatives from all ranks; false negatives masked; the symmetric direction is
        uncorrected, as anchors are not drawn by popularity.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    rank, _ = rank_and_world_size()
    num_pairs = anchors.shape[0]
    own = torch.arange(num_pairs, device=anchors.device) + rank * num_pairs
    known = torch.cat([right_item[:, None], known_positives], dim=1)
    is_shut = is_known(known, gather_equal_rows(right_item))  # [pair, candidate]
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ gather_with_grad(positives.float()).T / temperature
        if right_log_frequency is not None:
            scores = scores - gather_equal_rows(right_log_frequency)
        loss = _softmax_loss(scores, is_shut, own)
        if not symmetric:
            return loss
        scores = positives.float() @ gather_with_grad(anchors.float()).T / temperature
        all_shut = gather_equal_rows(is_shut.byte()).bool()  # [every pair, candidate]
        return (loss + _softmax_loss(scores, all_shut[:, own].T, own)) / 2


def is_known(
    known: Int[Tensor, "pair known"], items: Int[Tensor, " candidate"]
) -> Bool[Tensor, "pair candidate"]:
    """Return whether each candidate item is a known item of each pair.

    Memory is pairs × candidates, for any number of known items.
    """
    ordered = items.sort().values
    first = torch.searchsorted(ordered, items)  # equal items share the place of their first
    place = torch.searchsorted(ordered, known.contiguous()).clamp(max=len(items) - 1)
    place = torch.where(ordered[place] == known, place, len(items))  # last: no candidate
    table = torch.zeros(len(known), len(items) + 1, dtype=torch.bool, device=known.device)
    return table.scatter_(1, place, True)[:, first]


def _softmax_loss(
    scores: Float[Tensor, "pair candidate"],
    no_negative: Bool[Tensor, "pair candidate"],
    own: Int[Tensor, " pair"],
) -> Float[Tensor, ""]:
    others = no_negative.scatter(1, own[:, None], False)
    return F.cross_entropy(scores.masked_fill(others, -torch.inf), own)


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
