"""Quality metrics of Semantic IDs: reconstruction error, use of codes, collisions."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.collisions.policies import Resolution, group_numbers
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.semantic_ids.quality.purity import Attribute, prefix_purity
from sidrec.semantic_ids.quantizers.base import FittedQuantizer
from sidrec.semantic_ids.quantizers.controls import hash_rows

NUM_NEIGHBORS = 10
_MOST_QUERIES = 1000
_MOST_PAIRS = 200_000_000  # a million items: 200 queries
_SEED = 0


def sample_of_items(num_items: int) -> Int[Tensor, " query"]:
    """Sample query items for the neighbor metrics; the draw depends only on the catalogue size.

    The draw is without replacement, with seed 0. It takes all of up to 1,000 items and 1,000 of up
    to 200,000. Of more items it takes so few that the comparison covers at most 2e8 pairs.
    """
    count = min(num_items, _MOST_QUERIES, max(1, _MOST_PAIRS // max(num_items, 1)))
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randperm(num_items, generator=generator)[:count].sort().values


def nearest_items(
    vectors: Float[Tensor, "item dim"], queries: Int[Tensor, " query"], *, num_neighbors: int
) -> Int[Tensor, "query neighbor"]:
    """Return the other items nearest to each query item by exact Euclidean distance.

    The search works in chunks of matrix products; ``vectors`` may be memory-mapped.
    """
    asked = vectors[queries].float()
    best = torch.full((len(queries), num_neighbors), torch.inf)
    items = torch.full((len(queries), num_neighbors), -1, dtype=torch.int64)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].float()
        far = torch.addmm(chunk.square().sum(dim=1), asked, chunk.T, alpha=-2)  # [query, row]
        own = ((queries >= start) & (queries < start + len(chunk))).nonzero().flatten()
        far[own, queries[own] - start] = torch.inf
        numbers = torch.arange(start, start + len(chunk)).expand(len(queries), -1)
        best, chosen = torch.cat([best, far], dim=1).topk(num_neighbors, dim=1, largest=False)
        items = torch.cat([items, numbers], dim=1).gather(1, chosen)
    return items


def neighbor_preservation(
    vectors: Float[Tensor, "item dim"], first_codes: Int[Tensor, " item"]
) -> float:
    """Return the fraction of an item's 10 nearest neighbors that have its first code.

    The result is the mean over ``sample_of_items``; a small catalogue uses all its neighbors. One
    code for all items gives 1.0, so compare with the perplexity of level 1. A catalogue of one
    item also gives 1.0.
    """
    num_neighbors = min(NUM_NEIGHBORS, len(vectors) - 1)
    if num_neighbors < 1:
        return 1.0
    queries = sample_of_items(len(vectors))
    near = nearest_items(vectors, queries, num_neighbors=num_neighbors)
    same = first_codes[near] == first_codes[queries].unsqueeze(1)
    return same.double().mean().item()


def quality_of(
    vectors: Float[Tensor, "item dim"],
    codes: Int[Tensor, "item level"],
    resolution: Resolution,
    quantizer: FittedQuantizer,
    *,
    attributes: Sequence[Attribute] = (),
) -> dict[str, float]:
    """Return the quality metrics of a catalogue's Semantic IDs, by name.

    Levels count from 1. ``…_before`` measures the quantizer's codes; the others measure the IDs
    after the collision policy.

    - ``ids/relative_error``: sum of squared differences between vectors and what their ID decodes
      to, over the sum of squared differences from the mean; 0 is perfect, 1 is one code for all.
    - ``ids/added_distortion``: increase of the relative error by the policy.
    - ``ids/usage_level_N`` fraction of codes in use, ``ids/dead_codes_level_N`` the rest, counted;
      ``ids/entropy_level_N`` in bits; ``ids/perplexity_level_N`` is 2 to that power, at most the
      codebook size; ``ids/gini_level_N`` of the items per code: 0 all codes alike, near 1 all
      items on one.
    - ``ids/collision_rate``: fraction of items that share their ID with another item;
      ``ids/unique_fraction``: distinct IDs over items; ``ids/largest_group``: items on one ID.
    - ``ids/moved_fraction``: items whose codes the policy changed; ``ids/prefix_moved_fraction``:
      in a level before the last.
    - ``ids/identical_embeddings``: fraction of items whose vector equals another item's.
    - ``ids/neighbor_preservation``: share of an item's 10 nearest neighbors that share its first
      code, over ``ids/neighbor_queries`` items (see ``sample_of_items``).
    - ``ids/purity_NAME_level_N``: share of items that have the value of attribute NAME most
      frequent among the items of their first N codes (see ``prefix_purity``); level 0 is the whole
      catalogue. Levels where every prefix has only one item are left out.
    """
    codes = codes.cpu()
    num_levels = codes.shape[1]
    after = resolution.codes[:, :num_levels]
    changed = codes != after
    before_error = relative_error(vectors, codes, quantizer)
    error = relative_error(vectors, after, quantizer) if changed.any() else before_error
    figures = {
        "ids/relative_error": error,
        "ids/relative_error_before": before_error,
        "ids/added_distortion": error - before_error,
        "ids/moved_fraction": _mean(changed.any(dim=1)),
        "ids/prefix_moved_fraction": _mean(changed[:, :-1].any(dim=1)),
        "ids/identical_embeddings": _shared(identical_groups(vectors))["collision_rate"],
    }
    for key, value in _shared(group_numbers(resolution.codes)).items():
        figures[f"ids/{key}"] = value
    for key, value in _shared(group_numbers(codes)).items():
        figures[f"ids/{key}_before"] = value
    for level, size in enumerate(resolution.codebook_sizes):
        for key, value in level_usage(resolution.codes[:, level], num_codes=size).items():
            figures[f"ids/{key}_level_{level + 1}"] = value
    for level, size in enumerate(quantizer.codebook_sizes):
        usage = level_usage(codes[:, level], num_codes=size)
        figures[f"ids/perplexity_level_{level + 1}_before"] = usage["perplexity"]
    kept = neighbor_preservation(vectors, resolution.codes[:, 0])
    figures["ids/neighbor_preservation"] = kept
    figures["ids/neighbor_queries"] = float(len(sample_of_items(len(vectors))))
    return figures | _purities(after, attributes)


def level_usage(codes: Int[Tensor, " item"], *, num_codes: int) -> dict[str, float]:
    """Return usage, dead codes, entropy (bits), perplexity and Gini index of one level's codes."""
    counts = torch.bincount(codes.cpu(), minlength=num_codes).double()
    place = torch.arange(1, num_codes + 1, dtype=torch.float64)
    weighted = (place * counts.sort().values).sum().item() / (num_codes * counts.sum().item())
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log2()).sum().item()
    return {
        "usage": len(shares) / num_codes,
        "dead_codes": float(num_codes - len(shares)),
        "entropy": abs(entropy),
        "perplexity": 2**entropy,
        "gini": 2 * weighted - (num_codes + 1) / num_codes,
    }


def relative_error(
    vectors: Float[Tensor, "item dim"],
    codes: Int[Tensor, "item level"],
    quantizer: FittedQuantizer,
) -> float:
    """Return squared error over squared deviation from the mean; 0 for constant vectors."""
    lost = deviation = 0.0
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for chunk in torch.split(vectors, CHUNK_ROWS):
        total += chunk.double().sum(dim=0).cpu()
    mean = (total / len(vectors)).float().to(vectors.device)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].float()
        decoded = quantizer.decode(codes[start : start + CHUNK_ROWS]).to(chunk.device)
        lost += (chunk - decoded).square().sum(dtype=torch.float64).item()
        deviation += (chunk - mean).square().sum(dtype=torch.float64).item()
    scale = vectors.shape[0] * mean.square().sum().item()
    return lost / deviation if deviation > 1e-12 * scale else 0.0  # below: rounding of equal rows


def identical_groups(vectors: Float[Tensor, "item dim"]) -> Int[Tensor, " item"]:
    """Return a dense number per row; rows with the same float32 bits share one (64-bit hash)."""
    hashes = hash_rows(vectors, key=0)
    return torch.from_numpy(np.unique(hashes, return_inverse=True)[1])


def _purities(codes: Tensor, attributes: Sequence[Attribute]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for level in range(codes.shape[1] + 1 if attributes else 0):
        groups = group_numbers(codes[:, :level])
        for attribute in attributes:
            purity = prefix_purity(groups, attribute)
            if purity is not None:
                figures[f"ids/purity_{attribute.name}_level_{level}"] = purity
    return figures


def _shared(groups: Tensor) -> dict[str, float]:
    sizes = torch.bincount(groups)
    return {
        "collision_rate": _mean(sizes[groups] > 1),
        "unique_fraction": len(sizes) / len(groups),
        "largest_group": float(sizes.max()),
    }


def _mean(flags: Tensor) -> float:
    return flags.double().mean().item()
