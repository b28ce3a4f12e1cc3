"""What happens where several items got the same codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.semantic_ids.collisions.reassign import reassign, refuse_no_capacity
from sidrec.semantic_ids.quantizers.base import MAX_CODEBOOK_SIZE, FittedQuantizer


class Resolution(NamedTuple):
    """Semantic IDs after a policy.

    Attributes:
        codes: int64 on the CPU; one column more than the quantizer's where a level was added.
        codebook_sizes: Codes per level of ``codes``.
    """

    codes: Int[Tensor, "item level"]
    codebook_sizes: tuple[int, ...]


class CollisionPolicy(ABC):
    """A deterministic way to make Semantic IDs of codes; ties go to the lower item_index.

    ``in_use`` are the Semantic IDs of items that have theirs already: they stay, and the new items
    find their place among them.
    """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return name and settings as plain JSON types, for the bundle."""

    @abstractmethod
    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantizer: FittedQuantizer,
        *,
        in_use: Int[Tensor, "held held_level"] | None = None,
    ) -> Resolution:
        """Return the Semantic IDs of the given items.

        Args:
            vectors: One row per item.
            codes: What the quantizer made of them.
            quantizer: Judges other codes.
            in_use: IDs of earlier items, as this policy returned them; None if there are none.

        Raises:
            ConfigError: If the levels cannot hold so many items.
        """


@dataclass(frozen=True, slots=True)
class KeepCollisions(CollisionPolicy):
    """Policy ``none``: items may share a Semantic ID and then take successive ranks."""

    def settings(self) -> dict[str, Any]:
        """Return the policy's name."""
        return {"name": "none"}

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantizer: FittedQuantizer,
        *,
        in_use: Int[Tensor, "held held_level"] | None = None,
    ) -> Resolution:
        """Return the codes as they are."""
        del vectors, in_use
        return Resolution(codes.cpu(), quantizer.codebook_sizes)


@dataclass(frozen=True, slots=True)
class ExtraLevel(CollisionPolicy):
    """Policy ``extra_level``: one more level counts the items that share the codes before it.

    Attributes:
        num_codes: Size of the added level, from 1 to 32768: no more items may share codes.

    Raises:
        ConfigError: If ``num_codes`` is out of range.

    Source:
        TIGER, sec. 3.1 (https://arxiv.org/abs/2305.05065).
    """

    num_codes: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.num_codes <= MAX_CODEBOOK_SIZE:
            raise ConfigError(
                f"num_codes is {self.num_codes}, expected 1 to {MAX_CODEBOOK_SIZE} (codes are "
                "stored as int16)."
            )

    def settings(self) -> dict[str, Any]:
        """Return name and size."""
        return {"name": "extra_level", "num_codes": self.num_codes}

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantizer: FittedQuantizer,
        *,
        in_use: Int[Tensor, "held held_level"] | None = None,
    ) -> Resolution:
        """Give the items of each group the lowest numbers not in use, by item_index."""
        del vectors
        codes = codes.cpu()
        num_held = 0 if in_use is None else len(in_use)
        before = codes if in_use is None else torch.cat([in_use[:, :-1].cpu(), codes])
        groups = group_numbers(before)
        self._refuse_overfull(groups)
        number = place_in_group(groups[num_held:])
        if in_use is not None:
            number = _skip_used(number, groups[num_held:], groups[:num_held], in_use[:, -1].cpu())
        sizes = (*quantizer.codebook_sizes, self.num_codes)
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

    Of the items that share codes those keep them that would lose most by moving. Only where a
    prefix has more items than the last level can hold do items leave it, for the nearest code of
    the level above with room (and so on upwards); their later levels are encoded anew. With a
    capacity of 1, IDs are unique whenever the codebooks can hold the catalogue at all.

    Attributes:
        capacity: Items that may share one ID, ``>= 1``.

    Raises:
        ConfigError: If ``capacity`` is not positive.

    Source:
        First fit to the nearest free code as in TorchEasyRec. Differs: who moves is decided by
        the error added, and overflow moves upwards instead of failing.
    """

    capacity: int = 1

    def __post_init__(self) -> None:
        refuse_no_capacity(self.capacity)

    def settings(self) -> dict[str, Any]:
        """Return name and capacity."""
        return {"name": "reassign_last_level", "capacity": self.capacity}

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantizer: FittedQuantizer,
        *,
        in_use: Int[Tensor, "held held_level"] | None = None,
    ) -> Resolution:
        """Return codes changed in as few items and by as little as the rounds find."""
        placed = reassign(vectors, codes, quantizer, capacity=self.capacity, in_use=in_use)
        return Resolution(placed, quantizer.codebook_sizes)


def group_numbers(codes: Int[Tensor, "item level"]) -> Int[Tensor, " item"]:
    """Return a dense number per row; rows with the same codes, and only they, share one."""
    groups = torch.zeros(len(codes), dtype=torch.int64)
    for column in codes.cpu().unbind(dim=1):
        if len(column):
            keys = groups * (int(column.max()) + 1) + column
            groups = torch.unique(keys, return_inverse=True)[1]
    return groups


def place_in_group(groups: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """Return for each item how many items before it are of its group."""
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(dim=0) - sizes
    place = torch.empty_like(groups)
    place[order] = torch.arange(len(groups)) - starts[groups[order]]
    return place


def _skip_used(place: Tensor, groups: Tensor, used_groups: Tensor, used: Tensor) -> Tensor:
    """Return the ``place``-th number of each item's group that is not used there."""
    span = int(max(used.max(), place.max())) + 2 if len(used) and len(place) else 1
    keys = torch.unique(used_groups * span + used)  # each group's used numbers, ascending
    held = keys // span
    rank = place_in_group(held)
    free_below = held * span + (keys % span - rank)  # ascending too
    position = torch.searchsorted(free_below, groups * span + place, right=True)
    return place + position - torch.searchsorted(held, groups)
