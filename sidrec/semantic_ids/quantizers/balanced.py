"""Balanced residual k-means: at no level may a code hold many more items than its share."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.initialization import progressive_start, uniform_sample
from sidrec.semantic_ids.kmeans.lloyd import k_means
from sidrec.semantic_ids.kmeans.sharded_rows import Rows, block_of_rank, chunks_of, rows_to_fit
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    Quantizer,
    check_sizes,
    refuse_few_items,
)
from sidrec.semantic_ids.quantizers.capacity_duals import capacity_prices, cheapest


@dataclass(frozen=True, slots=True)
class FittedBalancedRqKMeans:
    """Fitted codebooks. A vector is decoded as the sum of its centroids.

    Attributes:
        codebooks: One per level, coarse level first, float32.
        prices: One per code, ``>= 0``: squared distance that a residual may save before it goes
            elsewhere. All 0 gives plain residual k-means.
    """

    codebooks: tuple[Float[Tensor, "_ dim"], ...]
    prices: tuple[Float[Tensor, " _"], ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return per level the code whose centroid is near the residual, and cheap.

        Raises:
            DataError: If the width differs from the codebooks', or a value is not finite.
        """
        return self.complete(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``, the levels after it encoded as in ``encode``."""
        device, dim = self.codebooks[0].device, self.codebooks[0].shape[1]
        codes = torch.zeros((len(vectors), len(self.codebooks)), dtype=torch.int64, device=device)
        codes[:, : prefix.shape[1]] = prefix.to(device)
        for rows, chunk in chunks_of(vectors, dim=dim, device=device):
            part = codes[rows]
            left = chunk - self.decode(part[:, : prefix.shape[1]])
            for level in range(prefix.shape[1], len(self.codebooks)):
                part[:, level] = cheapest(left, self.codebooks[level], self.prices[level])
                left = left - self.codebooks[level][part[:, level]]
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, stand for."""
        codes = codes.to(self.codebooks[0].device, torch.int64)
        total = self.codebooks[0].new_zeros((len(codes), self.codebooks[0].shape[1]))
        for level, column in enumerate(codes.unbind(dim=1)):
            total += self.codebooks[level][column]
        return total

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code, without prices."""
        codebook = self.codebooks[prefix.shape[1]]
        left = vectors.to(codebook.device, torch.float32) - self.decode(prefix)
        squares = left.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
        return (squares - 2 * left @ codebook.T).clamp_(min=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``level_N.codebook`` and ``level_N.prices``, levels counted from 1."""
        named = {f"level_{n}.codebook": t for n, t in enumerate(self.codebooks, start=1)}
        return named | {f"level_{n}.prices": t for n, t in enumerate(self.prices, start=1)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedBalancedRqKMeans":
        """Build the quantizer from what ``tensors`` returned."""
        levels = range(1, len(tensors) // 2 + 1)
        return cls(
            codebooks=tuple(tensors[f"level_{n}.codebook"] for n in levels),
            prices=tuple(tensors[f"level_{n}.prices"] for n in levels),
        )


@dataclass(frozen=True, slots=True)
class BalancedRqKMeans(Quantizer):
    """Residual k-means in which a code of a level holds at most ``slack`` times its even share.

    The limit counts all items of a level, whatever their prefix. It is kept by a price per code
    that is stored with the centroids, so that items which come later are coded by the same rule:
    nearest, price included. Of ``n`` fitted items no code has more than ``ceil(slack * n / k)``,
    equal vectors apart, which cannot be told from each other. Where the catalogue is larger than
    ``sample_rows`` the limit holds for the sample, and for the rest as far as it is like it.

    Attributes:
        codebook_sizes: Codes per level, coarse first, each in [2, 32768].
        slack: Largest number of items on a code over the even share, ``>= 1``.
        num_iterations: Most k-means iterations per level before balancing, ``>= 1``.
        num_balancings: How often prices and centroids follow each other, ``>= 0``; once more,
            prices are found for the last centroids.
        price_step: Least rise of a price, as a fraction of the mean squared error; smaller is
            slower and nearer to the least error that the limit allows.
        sample_rows: Everything is learned from at most this many rows.
        seed: Seed of all draws.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Balanced k-means as in OneRec, sec. 3 (https://arxiv.org/abs/2502.18965). Differs: limits
        are kept by prices, not by filling one cluster after another, so new items can be coded.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    slack: float = 1.1
    num_iterations: int = 25
    num_balancings: int = 1
    price_step: float = 1e-3
    sample_rows: int = 65_536
    seed: int = 1234

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        least = {"slack": 1, "num_iterations": 1, "num_balancings": 0, "sample_rows": 2}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {value}.")
        if not self.price_step > 0:
            raise ConfigError(f"price_step is {self.price_step}, expected more than 0.")

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        sizes = list(self.codebook_sizes)
        return {"name": "balanced_rq_kmeans"} | asdict(self) | {"codebook_sizes": sizes}

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Fit on a sample of all ranks' rows; every rank gets the same result.

        Raises:
            DataError: If a value is not finite (names rows).
            ConfigError: If there are fewer items than codes.
        """
        rows = rows_to_fit(vectors)
        refuse_few_items(min(rows.num_rows, self.sample_rows), self.codebook_sizes)
        generator = torch.Generator().manual_seed(self.seed)
        left = uniform_sample(rows, sample_rows=self.sample_rows, generator=generator)
        codebooks, prices = [], []
        for size in self.codebook_sizes:
            start = progressive_start(left, num_codes=size, generator=generator)
            codebook, price = self._balanced(left, self._centroids(left, start))
            codebooks.append(codebook)
            prices.append(price)
            left = left - codebook[cheapest(left, codebook, price)]
        return FittedBalancedRqKMeans(tuple(codebooks), tuple(prices))

    def _centroids(self, points: Tensor, start: Tensor) -> Tensor:
        """Run plain k-means on points that every rank holds; each rank works on its block."""
        begin, end = block_of_rank(len(points))
        block = points[begin:end]
        rows = Rows(lambda a, b: block[a:b], len(block), points.shape[1])
        found = k_means(rows, start, num_iterations=self.num_iterations, tolerance=1e-4)
        return found.centroids

    def _balanced(self, points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        capacity = math.ceil(self.slack * len(points) / len(centroids))
        for _ in range(self.num_balancings):
            prices = capacity_prices(points, centroids, capacity=capacity, step=self.price_step)
            centroids = _means(points, cheapest(points, centroids, prices), centroids)
        centroids = from_rank_zero(centroids)
        prices = capacity_prices(points, centroids, capacity=capacity, step=self.price_step)
        return centroids, from_rank_zero(prices)


def _means(points: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """Return the mean of each code's points; of a code without any, what it was before."""
    sums = torch.zeros_like(before, dtype=torch.float64).index_add_(0, codes, points.double())
    counts = torch.bincount(codes, minlength=len(before)).unsqueeze(1)
    return torch.where(counts > 0, (sums / counts.clamp(min=1)).float(), before)
