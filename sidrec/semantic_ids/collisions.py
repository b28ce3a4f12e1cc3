"""What happens where several items got the same codes."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.semantic_ids.quantiser import FittedQuantiser
from sidrec.semantic_ids.spread import spread


class Resolution(NamedTuple):
    """Semantic IDs after a policy.

    Attributes:
        codes: int64 on the CPU; one column more than the quantiser's where a level was added.
        codebook_sizes: Codes per level of ``codes``.
    """

    codes: Int[Tensor, "item level"]
    codebook_sizes: tuple[int, ...]


class CollisionPolicy(ABC):
    """A deterministic way to make Semantic IDs of codes; ties go to the lower item_index."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return name and settings as plain JSON types, for the bundle."""

    @abstractmethod
    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantiser: FittedQuantiser,
    ) -> Resolution:
        """Return the Semantic ID of every item of the catalogue.

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
        quantiser: FittedQuantiser,
    ) -> Resolution:
        """Return the codes as they are."""
        del vectors
        return Resolution(codes.cpu(), quantiser.codebook_sizes)


@dataclass(frozen=True, slots=True)
class ExtraLevel(CollisionPolicy):
    """Policy ``extra_level``: one more level counts the items that share the codes before it.

    Attributes:
        num_codes: Size of the added level: no more items may share codes.

    Source:
        TIGER, sec. 3.1 (https://arxiv.org/abs/2305.05065).
    """

    num_codes: int

    def settings(self) -> dict[str, Any]:
        """Return name and size."""
        return {"name": "extra_level", "num_codes": self.num_codes}

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantiser: FittedQuantiser,
    ) -> Resolution:
        """Number the items of each group by item_index, from 0."""
        del vectors
        codes = codes.cpu()
        groups = group_numbers(codes)
        order = groups.argsort(stable=True)
        sizes = torch.bincount(groups)
        largest = int(sizes.max()) if len(sizes) else 0
        if largest > self.num_codes:
            raise ConfigError(
                f"{largest} items share the same codes but the extra level has {self.num_codes}; "
                "raise num_codes, add a level to codebook_sizes, or use ReassignLastLevel."
            )
        starts = sizes.cumsum(dim=0) - sizes
        number = torch.empty_like(groups)
        number[order] = torch.arange(len(groups)) - starts[groups[order]]
        sizes_after = (*quantiser.codebook_sizes, self.num_codes)
        return Resolution(torch.cat([codes, number.unsqueeze(1)], dim=1), sizes_after)


@dataclass(frozen=True, slots=True)
class ReassignLastLevel(CollisionPolicy):
    """Policy ``reassign_last_level``: move to the next-nearest free code within the prefix.

    Of the items that share codes one keeps them: the one that would lose most by moving. Only
    where a prefix has more items than the last level has codes do items leave it, for the nearest
    code of the level above with room (and so on upwards); their later levels are encoded anew.
    IDs are unique whenever the codebooks can hold the catalogue at all.

    Source:
        First fit to the nearest free code as in TorchEasyRec. Differs: who moves is decided by
        the error added, and overflow moves upwards instead of failing.
    """

    def settings(self) -> dict[str, Any]:
        """Return the policy's name."""
        return {"name": "reassign_last_level"}

    def resolve(
        self,
        vectors: Float[Tensor, "item dim"],
        codes: Int[Tensor, "item level"],
        quantiser: FittedQuantiser,
    ) -> Resolution:
        """Return unique codes, changed in as few items and by as little as the rounds find."""
        sizes = quantiser.codebook_sizes
        if len(codes) > math.prod(sizes):
            raise ConfigError(
                f"{len(codes)} items do not fit into codebook_sizes {list(sizes)} with "
                f"{math.prod(sizes)} distinct IDs; add a level or raise the sizes."
            )
        codes = codes.cpu().clone()
        groups = torch.zeros(len(codes), dtype=torch.int64)
        for level, size in enumerate(sizes):
            prefix = codes[:, :level]

            def errors(rows: Tensor, prefix: Tensor = prefix) -> Tensor:
                return quantiser.candidate_errors(vectors[rows], prefix[rows])

            capacity = math.prod(sizes[level + 1 :])
            placed = spread(groups, codes[:, level], errors, num_codes=size, capacity=capacity)
            moved = (placed != codes[:, level]).nonzero().flatten()
            codes[moved, level] = placed[moved]
            if len(moved) and level + 1 < len(sizes):
                codes[moved] = quantiser.complete(vectors[moved], codes[moved, : level + 1]).cpu()
            groups = torch.unique(groups * size + codes[:, level], return_inverse=True)[1]
        return Resolution(codes, sizes)


def group_numbers(codes: Int[Tensor, "item level"]) -> Int[Tensor, " item"]:
    """Return a dense number per row; rows with the same codes, and only they, share one."""
    groups = torch.zeros(len(codes), dtype=torch.int64)
    for column in codes.cpu().unbind(dim=1):
        if len(column):
            keys = groups * (int(column.max()) + 1) + column
            groups = torch.unique(keys, return_inverse=True)[1]
    return groups
