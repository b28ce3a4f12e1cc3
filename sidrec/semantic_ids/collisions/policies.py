"""Collision policies: turn codes that items share into Semantic IDs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.semantic_ids.collisions.capacitated_assignment import rank_in_group
from sidrec.semantic_ids.collisions.reassign import reassign, refuse_no_capacity
from sidrec.semantic_ids.quantizers.base import MAX_CODEBOOK_SIZE, FittedQuantizer, NamedSettings


class Resolution(NamedTuple):
    """Semantic IDs after a policy.

    Attributes:
        codes: int64 on the CPU; one column more than the quantizer's where a level was added.
        codebook_sizes: Codes per level of ``codes``.
    """

    codes: Int[Tensor, "item level"]
    codebook_sizes: tuple[int, ...]


class CodedItems(NamedTuple):
    """Items that need their Semantic IDs.

    Attributes:
        vectors: One row per item.
        codes: Codes from the quantizer; int64 on the CPU.
        quantizer: Fitted quantizer, for the errors of other codes.
        in_use: IDs of earlier items, as this policy returned them; they do not change. None if
            there are no earlier items.
    """

    vectors: Float[Tensor, "item dim"]
    codes: Int[Tensor, "item level"]
    quantizer: FittedQuantizer
    in_use: Int[Tensor, "held held_level"] | None


class CollisionPolicy(NamedSettings, ABC):
    """Collision policy base: deterministic; ties go to the lower item_index."""

    @abstractmethod
    def assign(self, items: CodedItems) -> Resolution:
        """Return the Semantic IDs of the given items; the hook of a policy.

        Raises:
            ConfigError: If the levels cannot hold so many items.
        """

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantizer: FittedQuantizer,
        *,
        in_use: Int[Tensor, "held held_level"] | None = None,
    ) -> Resolution:
        """Return the Semantic IDs of items; arguments as in ``CodedItems``.

        Raises:
            ConfigError: If the levels cannot hold so many items.
        """
        held = None if in_use is None else in_use.cpu()
        return self.assign(CodedItems(vectors, codes.cpu(), quantizer, held))


@dataclass(frozen=True, slots=True)
class KeepCollisions(CollisionPolicy):
    """Policy ``none``: items may share a Semantic ID and then take successive ranks."""

    name = "none"

    def assign(self, items: CodedItems) -> Resolution:
        """Return the codes as they are."""
        return Resolution(items.codes, items.quantizer.codebook_sizes)


@dataclass(frozen=True, slots=True)
class ExtraLevel(CollisionPolicy):
    """Policy ``extra_level``: one more level counts the items that share the codes before it.

    Attributes:
        num_codes: Size of the added level, from 1 to 32768; the most items that may share codes.

    Raises:
        ConfigError: If ``num_codes`` is out of range.

    Source:
        TIGER, sec. 3.1 (https://arxiv.org/abs/2305.05065).
    """

    num_codes: int = 256

    name = "extra_level"

    def __post_init__(self) -> None:
        if not 1 <= self.num_codes <= MAX_CODEBOOK_SIZE:
            raise ConfigError(
                f"num_codes is {self.num_codes}, expected 1 to {MAX_CODEBOOK_SIZE} (codes are "
                "stored as int16)."
            )

    def assign(self, items: CodedItems) -> Resolution:
        """Give the items of each group the lowest numbers not in use, by item_index."""
        codes, in_use = items.codes, items.in_use
        num_held = 0 if in_use is None else len(in_use)
        before = codes if in_use is None else torch.cat([in_use[:, :-1], codes])
        groups = group_numbers(before)
        self._refuse_overfull(groups)
        number = rank_in_group(groups[num_held:])
        if in_use is not None:
            number = _skip_used(number, groups[num_held:], groups[:num_held], in_use[:, -1])
        sizes = (*items.quantizer.codebook_sizes, self.num_codes)
        return Resolution(torch.cat([codes, number.unsqueeze(1)], dim=1), sizes)

    def _refuse_overfull(self, groups: Tensor) -> None:
        largest = int(torch.bincount(groups).max()) if len(groups) else 0
        if largest > self.num_codes:
            raise ConfigError(
                f"{largest} items share the same codes but the extra level has {self.num_codes}; "
                "raise num_codes, add a level to codebook_sizes, or use ReassignLastLevel."
            )


@dataclass(frozen=True, slots=True)
class ReassignLastLevel(CollisionPolicy):
    """Policy ``reassign_last_level``: move to the next-nearest code with room within the prefix.

    Among items that share codes, the policy moves those whose error grows least. Items leave a
    prefix only if it has more items than the last level can hold. They move to the nearest code
    with room in the level above (and so on upwards), and their later levels are encoded anew. With
    a capacity of 1, IDs are unique whenever the codebooks can hold the catalogue.

    Attributes:
        capacity: Items that may share one ID, ``>= 1``.

    Raises:
        ConfigError: If ``capacity`` is not positive.

    Source:
        First fit to the nearest free code as in TorchEasyRec. Differs: the added error decides
        which items move, and overflow moves upwards instead of failing.
    """

    capacity: int = 1

    name = "reassign_last_level"

    def __post_init__(self) -> None:
        refuse_no_capacity(self.capacity)

    def assign(self, items: CodedItems) -> Resolution:
        """Return codes in which the assignment rounds change few items, by small errors."""
        placed = reassign(*items, capacity=self.capacity)
        return Resolution(placed, items.quantizer.codebook_sizes)


def group_numbers(codes: Int[Tensor, "item level"]) -> Int[Tensor, " item"]:
    """Return a dense number per row; only rows with the same codes share a number."""
    groups = torch.zeros(len(codes), dtype=torch.int64)
    for column in codes.cpu().unbind(dim=1):
        if len(column):
            keys = groups * (int(column.max()) + 1) + column
            groups = torch.unique(keys, return_inverse=True)[1]
    return groups


def _skip_used(place: Tensor, groups: Tensor, used_groups: Tensor, used: Tensor) -> Tensor:
    """Return the ``place``-th number of each item's group that is not used there."""
    span = int(max(used.max(), place.max())) + 2 if len(used) and len(place) else 1
    keys = torch.unique(used_groups * span + used)  # each group's used numbers, ascending
    held = keys // span
    rank = rank_in_group(held)
    free_below = held * span + (keys % span - rank)  # ascending too
    position = torch.searchsorted(free_below, groups * span + place, right=True)
    return place + position - torch.searchsorted(held, groups)
