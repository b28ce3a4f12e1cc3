"""Product quantization through faiss: flat codes, one per part of the vector."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import from_rank_zero, rank_and_world_size
from sidrec.errors import ConfigError
from sidrec.semantic_ids.checked_rows import exact_mean, rows_to_fit
from sidrec.semantic_ids.codebook_sizes import check_equal_powers_of_two, refuse_few_items
from sidrec.semantic_ids.product_codebooks import FittedProductQuantizer
from sidrec.semantic_ids.quantizer import FittedQuantizer, Quantizer
from sidrec.semantic_ids.starts import uniform_sample


@dataclass(frozen=True, slots=True)
class ProductQuantizer(Quantizer):
    """PQ, or OPQ with a learned rotation; faiss trains, encoding and decoding need no faiss.

    Levels are parts of the vector, not steps of refinement: a prefix says nothing about the
    parts after it, so the first code is no coarser than the last.

    Attributes:
        codebook_sizes: Codes per level: one power of two for all, in [2, 32768].
        rotate: Learn a rotation that makes the parts independent and equally rich (OPQ).
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

    codebook_sizes: tuple[int, ...]
    rotate: bool
    num_iterations: int
    num_rotations: int
    sample_rows: int
    seed: int

    def __post_init__(self) -> None:
        check_equal_powers_of_two(self.codebook_sizes)
        for name in ("num_iterations", "num_rotations", "sample_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain JSON types; the name is ``opq`` with a rotation."""
        name = "opq" if self.rotate else "pq"
        return {"name": name} | asdict(self) | {"codebook_sizes": list(self.codebook_sizes)}

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
        codec.cp.max_points_per_centroid = self.sample_rows  # no sampling behind our back
        codec.cp.verbose = False
        return codec


def _check_faiss() -> None:
    from importlib.util import find_spec

    if find_spec("faiss") is None:
        raise ConfigError(
            "Product quantization needs faiss: pip install 'sidrec[cpu]' (or 'sidrec[gpu]')."
        )
