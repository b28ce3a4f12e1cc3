"""Sampling Semantic IDs without replacement: beam search over scores shaken by Gumbel noise."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.decoding.beam_search import (
    Beams,
    Decoded,
    Step,
    best_columns,
    candidate_scores,
    expand,
    follow,
    over_children,
)
from sidrec.generator.decoding.item_filters import AllowedItems, allowed_in_children
from sidrec.generator.decoding.trie import SemanticIdTrie

_LOWEST = float("-inf")
_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


@torch.no_grad()
def sampled_search(
    step: Step,
    trie: SemanticIdTrie,
    allowed: AllowedItems,
    *,
    seeds: Int[Tensor, " request"],
    num_beams: int,
    temperature: float,
    top_k: int,
    mass_before: Float[Tensor, "request bound"] | None = None,
) -> Decoded:
    """Draw ``num_beams`` distinct Semantic IDs from the model, one after another, exactly.

    The distribution is the model's, at each level over the codes that lead to an allowed item.
    A wider search begins with the same draws. The noise is a function of a request's seed and of
    the prefix alone: neither the batch nor the device changes a draw.

    Args:
        step: The model, set to the batch's sources.
        trie: The catalogue, on the model's device.
        allowed: Items each request may get.
        seeds: One number a request; another number gives another sample.
        num_beams: Semantic IDs to draw.
        temperature: Divides log-probabilities; > 0. Below 1 likely codes become likelier.
        top_k: Length of the lists, at most ``num_beams``.
        mass_before: See ``beams.search_allowed``.

    Returns:
        In the order of the draws. Scores are log-probabilities of this distribution with the
        noise in them, which is what orders the draws; they may exceed 0.

    Raises:
        ConfigError: If ``num_beams`` is smaller than ``top_k``, or the temperature not positive.

    Source:
        Kool et al. 2019, Stochastic Beams and Where to Find Them, algorithm 1 and appendix B.3
        (https://arxiv.org/abs/1903.06059).
    """
    if not 1 <= top_k <= num_beams:
        raise ConfigError(f"num_beams ({num_beams}) must be at least top_k ({top_k}); raise it.")
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}.")
    beams, parent = Beams.at_root(trie, len(seeds)), trie.keys.new_zeros((len(seeds), 1))
    codes, shaken = parent, beams.scores  # beams.scores is what the model says, shaken orders
    for level, size in enumerate(trie.codebook_sizes):
        log_probabilities = step(level, parent, codes)
        bounds = trie.child_bounds(beams.lo, beams.hi, level=level)
        if mass_before is not None:
            log_probabilities = over_children(log_probabilities, bounds, mass_before)
        num_allowed = allowed_in_children(allowed, trie, bounds, level=level)
        start = torch.zeros_like(beams.scores)
        free = candidate_scores(start, log_probabilities / temperature, num_allowed)
        normalized = free - free.logsumexp(dim=-1, keepdim=True)
        scores = candidate_scores(beams.scores, normalized, num_allowed)
        prefix = trie.keys[beams.lo] // math.prod(trie.codebook_sizes[level:])
        noise = gumbel_noise(seeds, prefix, level=level, size=size)
        candidates = _below(shaken, scores + noise).flatten(1)
        chosen = best_columns(candidates, min(num_beams, candidates.shape[1]))
        parent, codes, shaken = chosen // size, chosen % size, candidates.gather(1, chosen)
        plain = torch.where(shaken > _LOWEST, scores.flatten(1).gather(1, chosen), _LOWEST)
        beams = follow(bounds, parent, codes, plain)
    return expand(Beams(beams.lo, beams.hi, shaken), trie, allowed, top_k)


def _below(
    ceiling: Float[Tensor, "request beam"], free: Float[Tensor, "request beam code"]
) -> Float[Tensor, "request beam code"]:
    """Move each beam's noisy scores so that the greatest becomes the beam's own."""
    greatest = free.amax(dim=-1, keepdim=True)
    gap = ceiling[..., None] - free + torch.log(-torch.expm1(free - greatest))
    bounded = ceiling[..., None] - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    return torch.where(free > _LOWEST, bounded, _LOWEST).nan_to_num(nan=_LOWEST)


def gumbel_noise(
    seeds: Int[Tensor, " request"], prefix: Int[Tensor, "request beam"], *, level: int, size: int
) -> Float[Tensor, "request beam code"]:
    """Return standard Gumbel noise of every child of every beam.

    Args:
        seeds: Of each request.
        prefix: Packed codes before ``level``.
        level: Of the children's codes.
        size: Number of codes.
    """
    stream = _mixed(seeds.long()[:, None] * 64 + level)  # [request, 1]; 64 levels at most
    branch = _mixed(stream ^ prefix.long())[..., None]  # [request, beam, 1]
    bits = _mixed(branch ^ torch.arange(size, device=prefix.device))
    uniform = ((bits >> 12) & ((1 << 52) - 1)).double().add(0.5) * 2.0**-52  # never 0 or 1
    return -torch.log(-torch.log(uniform)).float()


def _mixed(state: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Mix 64 bits well; int64 wraps around. Source: SplitMix64 (Steele, Lea, Flood 2014)."""
    state = state + _GOLDEN
    state = (state ^ (state >> 30 & ((1 << 34) - 1))) * _MIX_1
    state = (state ^ (state >> 27 & ((1 << 37) - 1))) * _MIX_2
    return state ^ (state >> 31 & ((1 << 33) - 1))
