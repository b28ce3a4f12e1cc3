"""Codebooks of balanced residual k-means: like those of residual k-means, with a price per code."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.checked_rows import chunks_of
from sidrec.semantic_ids.prices import cheapest


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
