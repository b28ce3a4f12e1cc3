"""Whether items that are near each other keep together in the first code."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.rows import CHUNK_ROWS

NUM_NEIGHBORS = 10
_MOST_QUERIES = 1000
_MOST_PAIRS = 200_000_000  # a million items: 200 queries
_SEED = 0


def sample_of_items(num_items: int) -> Int[Tensor, " query"]:
    """Return the items whose neighbors are looked at: the same draw for the same catalogue size.

    Without replacement, seed 0: all of up to 1,000 items, 1,000 of up to 200,000; of more items so
    few that no more than 2e8 pairs are compared.
    """
    count = min(num_items, _MOST_QUERIES, max(1, _MOST_PAIRS // max(num_items, 1)))
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randperm(num_items, generator=generator)[:count].sort().values


def nearest_items(
    vectors: Float[Tensor, "item dim"], queries: Int[Tensor, " query"], *, num_neighbors: int
) -> Int[Tensor, "query neighbor"]:
    """Return the other items nearest to each query item by Euclidean distance, exactly.

    Compared in chunks of matrix products; ``vectors`` may be memory-mapped.
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
    """Return the share of an item's 10 nearest neighbors that share its first code.

    Mean over ``sample_of_items``; with few items, over as many neighbors as there are. One code
    for all items has 1.0: read it beside the perplexity of level 1. A catalogue of one item has
    1.0 too.
    """
    num_neighbors = min(NUM_NEIGHBORS, len(vectors) - 1)
    if num_neighbors < 1:
        return 1.0
    queries = sample_of_items(len(vectors))
    near = nearest_items(vectors, queries, num_neighbors=num_neighbors)
    same = first_codes[near] == first_codes[queries].unsqueeze(1)
    return same.double().mean().item()
