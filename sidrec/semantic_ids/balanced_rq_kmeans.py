"""Balanced residual k-means: at no level may a code hold many more items than its share."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import from_rank_zero
from sidrec.errors import ConfigError
from sidrec.semantic_ids.balanced_codebooks import FittedBalancedRqKMeans
from sidrec.semantic_ids.checked_rows import rows_to_fit
from sidrec.semantic_ids.codebook_sizes import check_sizes, refuse_few_items
from sidrec.semantic_ids.kmeans import k_means
from sidrec.semantic_ids.prices import capacity_prices, cheapest
from sidrec.semantic_ids.quantizer import FittedQuantizer, Quantizer
from sidrec.semantic_ids.rows import Rows, block_of_rank
from sidrec.semantic_ids.starts import progressive_start, uniform_sample


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

    codebook_sizes: tuple[int, ...]
    slack: float
    num_iterations: int
    num_balancings: int
    price_step: float
    sample_rows: int
    seed: int

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
