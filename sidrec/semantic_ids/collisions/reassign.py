"""Reassignment of items to codes with room: within their prefix, upwards only if it is full."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.semantic_ids.collisions.capacitated_assignment import (
    CodeDuals,
    assign_with_capacity,
    rank_in_group,
)
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.semantic_ids.quantizers.base import FittedQuantizer


def reassign(
    vectors: Float[Tensor, "item dim"],
    codes: Int[Tensor, "item level"],
    quantizer: FittedQuantizer,
    in_use: Int[Tensor, "held level"] | None = None,
    *,
    capacity: int,
    code_duals: CodeDuals | None = None,
) -> Int[Tensor, "item level"]:
    """Return codes such that at most ``capacity`` items share all levels.

    Level by level, coarse first: no code may have more items than the levels after it can hold.
    Items that have to move are encoded anew from there on.

    Args:
        vectors: One row per item, read in parts; may be memory-mapped.
        codes: Codes of the items from the quantizer.
        quantizer: Fitted quantizer, for the errors of other codes.
        in_use: IDs of items that keep them.
        capacity: Items on one ID, ``>= 1``.
        code_duals: Costs of the codes of the last level beside the squared errors (see
            ``assign_with_capacity``).

    Raises:
        ConfigError: If there are more items than places.
    """
    sizes = quantizer.codebook_sizes
    held = codes.new_zeros((0, len(sizes))).cpu() if in_use is None else in_use.cpu().to(codes)
    held = _at_most(held, capacity)
    _refuse_too_many(len(codes), len(held), sizes, capacity)
    codes = torch.cat([held, codes.cpu()])
    groups = torch.zeros(len(codes), dtype=torch.int64)
    for level, size in enumerate(sizes):

        def errors(rows: Tensor, prefix: Tensor = codes[:, :level]) -> Tensor:
            parts = [
                quantizer.next_code_errors(vectors[part - len(held)], prefix[part]).cpu()
                for part in torch.split(rows, CHUNK_ROWS)
            ]
            return torch.cat(parts)

        placed = assign_with_capacity(
            groups,
            codes[:, level],
            errors,
            num_codes=size,
            capacity=min(capacity * math.prod(sizes[level + 1 :]), len(codes)),
            num_fixed=len(held),
            code_duals=code_duals if level + 1 == len(sizes) else None,
        )
        moved = (placed != codes[:, level]).nonzero().flatten()
        codes[moved, level] = placed[moved]
        if level + 1 < len(sizes):
            for rows in torch.split(moved, CHUNK_ROWS):
                part = vectors[rows - len(held)]
                codes[rows] = quantizer.encode_from_prefix(part, codes[rows, : level + 1]).cpu()
        groups = torch.unique(groups * size + codes[:, level], return_inverse=True)[1]
    return codes[len(held) :]


def refuse_no_capacity(capacity: int) -> None:
    """Raise ConfigError unless an ID may hold at least one item."""
    if capacity < 1:
        raise ConfigError(f"capacity is {capacity}, expected at least 1 item per Semantic ID.")


def _at_most(held: Tensor, capacity: int) -> Tensor:
    """Drop rows beyond ``capacity`` equal ones, since they take no room from other items."""
    if len(held) == 0:
        return held
    groups = torch.unique(held, dim=0, return_inverse=True)[1]
    return held[rank_in_group(groups) < capacity]


def _refuse_too_many(num_items: int, num_held: int, sizes: tuple[int, ...], capacity: int) -> None:
    num_ids = math.prod(sizes)
    if num_items <= capacity * num_ids - num_held:
        return
    in_use = f", {num_held} places are in use" if num_held else ""
    shared = f" for {capacity} items each" if capacity > 1 else ""
    raise ConfigError(
        f"{num_items} items do not fit into codebook_sizes {list(sizes)} with {num_ids} distinct "
        f"IDs{shared}{in_use}; add a level, or raise the sizes or the policy's capacity."
    )
