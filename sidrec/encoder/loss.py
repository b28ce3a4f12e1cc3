"""In-batch contrastive loss over all ranks, and gradient caching for batches above memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidrec.distributed import gather_rows, gather_with_grad, rank_and_world_size
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
    all_items = gather_rows(right_item)
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ gather_with_grad(positives.float()).T / temperature
        if right_log_frequency is not None:
            scores = scores - gather_rows(right_log_frequency)
        loss = _softmax_loss(scores, is_known(known, all_items), own)
        if not symmetric:
            return loss
        scores = positives.float() @ gather_with_grad(anchors.float()).T / temperature
        all_known = gather_rows(_widest(known))
        return (loss + _softmax_loss(scores, is_known(all_known, right_item).T, own)) / 2


def is_known(
    known: Int[Tensor, "pair known"], items: Int[Tensor, " candidate"]
) -> Bool[Tensor, "pair candidate"]:
    """Return whether each candidate item is a known item of each pair.

    Memory is pairs × candidates, for any number of known items.
    """
    distinct, place_of = torch.unique(items, return_inverse=True)
    place = torch.searchsorted(distinct, known.contiguous()).clamp(max=len(distinct) - 1)
    place = torch.where(distinct[place] == known, place, len(distinct))  # last: no candidate
    table = torch.zeros(len(known), len(distinct) + 1, dtype=torch.bool, device=known.device)
    return table.scatter_(1, place, True)[:, place_of]


def _softmax_loss(
    scores: Float[Tensor, "pair candidate"],
    no_negative: Bool[Tensor, "pair candidate"],
    own: Int[Tensor, " pair"],
) -> Float[Tensor, ""]:
    others = no_negative.scatter(1, own[:, None], False)
    return F.cross_entropy(scores.masked_fill(others, -torch.inf), own)


def _widest(known: Int[Tensor, "pair known"]) -> Int[Tensor, "pair widest"]:
    """Pad known items with -1 to the width of the widest rank."""
    widest = int(gather_rows(torch.tensor([known.shape[1]], device=known.device)).max())
    return F.pad(known, (0, widest - known.shape[1]), value=-1)


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
