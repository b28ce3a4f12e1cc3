"""Codebooks of product quantization: each level looks at its own part of the vector."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.checked_rows import chunks_of
from sidrec.semantic_ids.screen import nearest_codes


@dataclass(frozen=True, slots=True)
class FittedProductQuantizer:
    """Fitted codebooks. A vector is rotated, cut into equal parts, and each part coded by itself.

    Levels are not coarse to fine: they are independent, and a prefix knows nothing of the parts
    after it, which it decodes to their mean.

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

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return per level the centroid nearest to the level's part; ties: the lowest code.

        Raises:
            DataError: If the width differs from the codebooks', or a value is not finite.
        """
        return self.complete(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``; the other levels do not depend on it."""
        device, num_levels = self.mean.device, len(self.codebooks)
        codes = torch.zeros((len(vectors), num_levels), dtype=torch.int64, device=device)
        codes[:, : prefix.shape[1]] = prefix.to(device)
        for rows, chunk in chunks_of(vectors, dim=len(self.mean), device=device):
            parts = (chunk @ self.rotation.T).chunk(num_levels, dim=1)
            for level in range(prefix.shape[1], num_levels):
                codes[rows, level] = nearest_codes(parts[level].contiguous(), self.codebooks[level])
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes stand for; parts without a code are the mean's."""
        return self._decode_rotated(codes) @ self.rotation

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        level, codebook = prefix.shape[1], self.codebooks[prefix.shape[1]]
        rotated = vectors.to(self.mean.device, torch.float32) @ self.rotation.T
        part = rotated.chunk(len(self.codebooks), dim=1)[level]
        own = part.square().sum(dim=1, keepdim=True) - 2 * part @ codebook.T
        own += codebook.square().sum(dim=1)
        left = (rotated - self._decode_rotated(prefix)).square()
        others = left.chunk(len(self.codebooks), dim=1)
        rest = left.sum(dim=1, keepdim=True) - others[level].sum(dim=1, keepdim=True)
        return own.clamp_(min=0) + rest.clamp_(min=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``rotation``, ``mean`` and ``level_N.codebook``, levels counted from 1."""
        named = {f"level_{n}.codebook": t for n, t in enumerate(self.codebooks, start=1)}
        return named | {"rotation": self.rotation, "mean": self.mean}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedProductQuantizer":
        """Build the quantizer from what ``tensors`` returned."""
        levels = range(1, len(tensors) - 1)
        codebooks = tuple(tensors[f"level_{n}.codebook"] for n in levels)
        return cls(tensors["rotation"], tensors["mean"], codebooks)

    def _decode_rotated(self, codes: Tensor) -> Tensor:
        codes = codes.to(self.mean.device, torch.int64)
        parts = [self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]
        known = sum(part.shape[1] for part in parts)
        return torch.cat([*parts, self.mean[known:].repeat(len(codes), 1)], dim=1)
