"""The rows that a quantizer is fitted on: checked on all ranks, or a sample of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import gather_objects, gather_rows, rank_and_world_size
from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.rows import CHUNK_ROWS, block_of_rank


def checked_sizes(
    vectors: Float[Tensor, "item dim"], codebook_sizes: tuple[int, ...], *, shrink: bool
) -> tuple[int, ...]:
    """Return how many codes each level gets; collective, so that all ranks raise or none does.

    Args:
        vectors: This rank's rows.
        codebook_sizes: Codes per level that were asked for.
        shrink: With fewer items than codes, use as many codes as items instead of refusing.

    Raises:
        DataError: If a value is not finite (names rows of the whole), or there are no rows.
        ConfigError: If there are fewer items than codes.
    """
    bad = [
        start + int(row)
        for start in range(0, len(vectors), CHUNK_ROWS)
        for row in (~torch.isfinite(vectors[start : start + CHUNK_ROWS]).all(dim=1)).nonzero()
    ]
    facts: list[tuple[int, list[int]]] = gather_objects((len(vectors), bad))
    first_rows = [sum(n for n, _ in facts[:rank]) for rank in range(len(facts))]
    named = [
        first + row for first, (_, rows) in zip(first_rows, facts, strict=True) for row in rows
    ]
    if named:
        raise DataError(
            f"{len(named)} vectors hold NaN or infinity (first rows: {named[:5]}); "
            "remove those items or encode them again."
        )
    num_items = sum(n for n, _ in facts)
    if num_items == 0:
        raise DataError("There are no vectors to fit on; the catalogue is empty.")
    if shrink:
        return tuple(min(size, num_items) for size in codebook_sizes)
    if num_items < max(codebook_sizes):
        raise ConfigError(
            f"The catalogue has {num_items} items, fewer than the {max(codebook_sizes)} codes of "
            f"codebook_sizes {list(codebook_sizes)}; choose smaller sizes, e.g. about the square "
            f"root of the number of items, or set shrink: true to use at most {num_items} codes "
            "a level."
        )
    return codebook_sizes


def training_block(
    vectors: Float[Tensor, "item dim"], *, num_rows: int | None, seed: int
) -> Float[Tensor, "row dim"]:
    """Return this rank's block of ``num_rows`` rows of all ranks, drawn without replacement.

    Collective. The rows and their order do not depend on the number of ranks. Where the ranks hold
    no more than ``num_rows``, or it is None, the block is ``vectors`` itself, not copied.
    """
    counts: list[int] = gather_objects(len(vectors))
    if num_rows is None or sum(counts) <= num_rows:
        return vectors
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sum(counts), generator=generator)[:num_rows].sort().values
    chosen -= sum(counts[: rank_and_world_size()[0]])
    own = chosen[(chosen >= 0) & (chosen < len(vectors))]
    rows = gather_rows(vectors[own.to(vectors.device)].float())
    start, stop = block_of_rank(len(rows))
    return rows[start:stop]
