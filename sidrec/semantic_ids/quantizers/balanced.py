"""Balanced residual k-means: a limit on the items of a code at every level."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.initialization import progressive_dims_init, uniform_sample
from sidrec.semantic_ids.kmeans.lloyd import cluster, sums_by_code
from sidrec.semantic_ids.kmeans.sharded_rows import common_offset, rows_to_fit
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    Quantizer,
    check_sizes,
    encode_residual,
    refuse_few_items,
    squared_distances,
    sum_of_codes,
)
from sidrec.semantic_ids.quantizers.capacity_duals import fit_capacity_duals, nearest_with_duals


@dataclass(frozen=True, slots=True)
class FittedBalancedRqKMeans(FittedQuantizer):
    """Fitted codebooks of balanced residual k-means; a vector decodes to the sum of its centroids.

    Attributes:
        codebooks: One per level, coarse level first, float32.
        duals: One per code, ``>= 0``, added to the squared distance when a residual chooses its
            code. All 0 gives plain residual k-means.
        offset: As in ``FittedRqKMeans``.
    """

    codebooks: tuple[Float[Tensor, "_ dim"], ...]
    duals: tuple[Float[Tensor, " _"], ...]
    offset: Float[Tensor, " dim"] | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return per level the code with the least squared distance plus dual."""

        def nearest(residual: Tensor, level: int) -> Tensor:
            return nearest_with_duals(residual, self.codebooks[level], self.duals[level])

        return encode_residual(self._centered(chunk), prefix, self.codebooks, nearest)

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, decode to."""
        decoded = sum_of_codes(self.codebooks, codes)
        return decoded if self.offset is None else decoded + self.offset

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code, without duals."""
        codebook = self.codebooks[prefix.shape[1]]
        rows = self._centered(vectors.to(codebook.device, torch.float32))
        return squared_distances(rows - sum_of_codes(self.codebooks, prefix), codebook)

    def _centered(self, rows: Tensor) -> Tensor:
        return rows if self.offset is None else rows - self.offset


_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class BalancedRqKMeans(Quantizer):
    """Residual k-means in which a code of a level holds at most ``slack`` times its even share.

    The limit counts all items of a level, whatever their prefix. A dual variable per code enforces
    it and is stored with the centroids. Later items follow the same rule: least squared distance
    plus dual. Of ``n`` fitted items no code has more than ``ceil(slack * n / k)``, except where
    vectors are equal, since equal vectors get equal codes. If the catalogue is larger than
    ``sample_rows``, the limit holds for the sample, and for other items if they are similar.

    Attributes:
        codebook_sizes: Codes per level, coarse first, each in [2, 32768].
        slack: Largest number of items on a code over the even share, ``>= 1``.
        num_iterations: Most k-means iterations per level before balancing, ``>= 1``.
        num_balancings: Alternations between duals and centroids, ``>= 0``; a final step fits
            duals to the last centroids.
        dual_step: Least rise of a dual, as a fraction of the mean squared error; smaller is
            slower and nearer to the least error that the limit allows.
        sample_rows: Most rows to learn from.
        seed: Seed of all draws.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Balanced k-means as in OneRec, sec. 3 (https://arxiv.org/abs/2502.18965). Differs: duals
        enforce limits, instead of filling clusters one by one, so new items can be coded.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    slack: float = 1.1
    num_iterations: int = 25
    num_balancings: int = 1
    dual_step: float = 1e-3
    sample_rows: int = 65_536
    seed: int = 1234

    name = "balanced_rq_kmeans"

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes)
        least = {"slack": 1, "num_iterations": 1, "num_balancings": 0, "sample_rows": 2}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {value}.")
        if not self.dual_step > 0:
            raise ConfigError(f"dual_step is {self.dual_step}, expected more than 0.")

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
        offset = common_offset(vectors)
        if offset is not None:
            left = left - offset
        codebooks, duals = [], []
        for size in self.codebook_sizes:
            initial = progressive_dims_init(left, num_codes=size, generator=generator)
            centroids = cluster(
                left, initial, num_iterations=self.num_iterations, tolerance=_TOLERANCE
            )
            codebook, dual = self._balanced(left, centroids)
            codebooks.append(codebook)
            duals.append(dual)
            left = left - codebook[nearest_with_duals(left, codebook, dual)]
        return FittedBalancedRqKMeans(tuple(codebooks), tuple(duals), offset)

    def _balanced(self, points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        capacity = math.ceil(self.slack * len(points) / len(centroids))
        for _ in range(self.num_balancings):
            duals = fit_capacity_duals(points, centroids, capacity=capacity, step=self.dual_step)
            centroids = _means(points, nearest_with_duals(points, centroids, duals), centroids)
        centroids = from_rank_zero(centroids)
        duals = fit_capacity_duals(points, centroids, capacity=capacity, step=self.dual_step)
        return centroids, from_rank_zero(duals)


def _means(points: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """Return the mean of each code's points; a code without points keeps its centroid."""
    sums, counts = sums_by_code(points.double(), codes, len(before))
    counts = counts.unsqueeze(1)
    return torch.where(counts > 0, (sums / counts.clamp(min=1)).float(), before)
