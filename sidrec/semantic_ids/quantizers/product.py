"""Product quantization through faiss: flat codes, one per part of the vector."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.distributed import from_rank_zero, rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.initialization import uniform_sample
from sidrec.semantic_ids.kmeans.sharded_rows import exact_mean, rows_to_fit
from sidrec.semantic_ids.quantizers.base import (
    FittedQuantizer,
    Quantizer,
    check_equal_powers_of_two,
    refuse_few_items,
    squared_distances,
)


@dataclass(frozen=True, slots=True)
class FittedProductQuantizer(FittedQuantizer):
    """Fitted product quantizer: rotate a vector, cut it into equal parts, code each part.

    Levels are independent, not coarse to fine: a prefix decodes the parts after it to their mean.

    Attributes:
        rotation: Orthonormal rows; the identity without rotation.
        mean: Mean of the rotated vectors.
        codebooks: One per level, of the width of a part.
    """

    rotation: Float[Tensor, "dim dim"]
    mean: Float[Tensor, " dim"]
    codebooks: tuple[Float[Tensor, "_ part"], ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return per level the centroid nearest to its part; no level depends on the prefix."""
        parts = (chunk @ self.rotation.T).chunk(len(self.codebooks), dim=1)
        nearest = [
            nearest_codes(parts[level].contiguous(), self.codebooks[level])
            for level in range(prefix.shape[1], len(self.codebooks))
        ]
        return torch.stack([*prefix.unbind(dim=1), *nearest], dim=1)

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes decode to; parts without a code equal the mean's."""
        return self._decode_rotated(codes) @ self.rotation

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        level, codebook = prefix.shape[1], self.codebooks[prefix.shape[1]]
        rotated = vectors.to(self.mean.device, torch.float32) @ self.rotation.T
        part = rotated.chunk(len(self.codebooks), dim=1)[level]
        own = squared_distances(part, codebook)
        left = (rotated - self._decode_rotated(prefix)).square()
        others = left.chunk(len(self.codebooks), dim=1)
        rest = left.sum(dim=1, keepdim=True) - others[level].sum(dim=1, keepdim=True)
        return own + rest.clamp_(min=0)

    def _decode_rotated(self, codes: Tensor) -> Tensor:
        codes = codes.to(self.mean.device, torch.int64)
        parts = [self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]
        known = sum(part.shape[1] for part in parts)
        return torch.cat([*parts, self.mean[known:].repeat(len(codes), 1)], dim=1)


@dataclass(frozen=True, slots=True)
class ProductQuantizer(Quantizer):
    """Product quantizer (PQ, or OPQ with a learned rotation); only training needs faiss.

    Levels are parts of the vector, not steps of refinement: a prefix says nothing about the
    parts after it, so the first code is no coarser than the last.

    Attributes:
        codebook_sizes: Codes per level: one power of two for all, in [2, 32768].
        rotate: Learn a rotation that makes the parts independent, with equal variance (OPQ).
        num_iterations: k-means iterations per part, ``>= 1``.
        num_rotations: Alternations between rotation and codebooks, ``>= 1``; OPQ only.
        sample_rows: faiss trains on at most this many rows, drawn uniformly.
        seed: Seed of all draws.

    Raises:
        ConfigError: If a setting is out of range.

    Source:
        Jégou et al. 2011 (https://doi.org/10.1109/TPAMI.2010.57); OPQ: Ge et al. 2013
        (https://doi.org/10.1109/CVPR.2013.379), as ``faiss.OPQMatrix`` has it.
    """

    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    rotate: bool = False
    num_iterations: int = 25
    num_rotations: int = 20
    sample_rows: int = 65_536
    seed: int = 1234

    def __post_init__(self) -> None:
        check_equal_powers_of_two(self.codebook_sizes)
        for name in ("num_iterations", "num_rotations", "sample_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain JSON types; the name is ``opq`` with a rotation."""
        return Quantizer.settings(self) | {"name": "opq" if self.rotate else "pq"}

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Train on rank 0 with a sample of all ranks' rows; all get the same result.

        Raises:
            DataError: If a value is not finite (names rows).
            ConfigError: If the width cannot be cut into so many parts, or items are too few.
        """
        rows, num_levels = rows_to_fit(vectors), len(self.codebook_sizes)
        if rows.dim % num_levels:
            raise ConfigError(
                f"Vectors of {rows.dim} dimensions cannot be cut into {num_levels} equal parts; "
                f"choose a number of levels that divides {rows.dim}."
            )
        refuse_few_items(min(rows.num_rows, self.sample_rows), self.codebook_sizes)
        _check_faiss()
        mean = exact_mean(rows)
        generator = torch.Generator().manual_seed(self.seed)
        sample = uniform_sample(rows, sample_rows=self.sample_rows, generator=generator)
        part = rows.dim // num_levels
        rotation = torch.eye(rows.dim, device=mean.device)
        books = mean.new_zeros((num_levels, self.codebook_sizes[0], part))
        if rank_and_world_size()[0] == 0:
            learned = self._learn(sample.cpu())
            rotation, books = (tensor.to(mean.device) for tensor in learned)
        rotation, books = from_rank_zero(rotation), from_rank_zero(books)
        return FittedProductQuantizer(rotation, rotation @ mean, tuple(books.unbind(dim=0)))

    def _learn(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotation [dim, dim] and codebooks [level, code, part]."""
        import faiss

        dim, num_levels = sample.shape[1], len(self.codebook_sizes)
        rows = sample.contiguous().numpy()
        rotation = torch.eye(dim)
        if self.rotate:
            matrix = faiss.OPQMatrix(dim, num_levels, dim)
            inner = self._codec(dim)
            matrix.pq, matrix.niter, matrix.verbose = inner, self.num_rotations, False
            matrix.max_train_points = max(len(sample), matrix.max_train_points)
            matrix.train(rows)
            rotation = torch.from_numpy(faiss.vector_to_array(matrix.A).reshape(dim, dim).copy())
            rows = matrix.apply(rows)
        codec = self._codec(dim)
        codec.train(rows)
        books = faiss.vector_to_array(codec.centroids)
        return rotation, torch.from_numpy(books.reshape(num_levels, codec.ksub, codec.dsub).copy())

    def _codec(self, dim: int) -> Any:  # noqa: ANN401 (faiss is untyped)
        import faiss

        bits = check_equal_powers_of_two(self.codebook_sizes)
        codec = faiss.ProductQuantizer(dim, len(self.codebook_sizes), bits)
        codec.cp.niter, codec.cp.seed = self.num_iterations, self.seed
        codec.cp.min_points_per_centroid = 1  # the default only warns
        codec.cp.max_points_per_centroid = self.sample_rows  # no sampling by faiss
        codec.cp.verbose = False
        return codec


def _check_faiss() -> None:
    from importlib.util import find_spec

    if find_spec("faiss") is None:
        raise ConfigError(
            "Product quantization needs faiss: pip install 'sidrec[cpu]' (or 'sidrec[gpu]')."
        )
