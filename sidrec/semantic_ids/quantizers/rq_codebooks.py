"""Codebooks of residual k-means: vectors to codes and back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import DataError
from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS

_NOISE = 1e-6  # a residual shorter than this fraction of its vector is rounding, not direction


@dataclass(frozen=True, slots=True)
class FittedRqKMeans:
    """Fitted codebooks. A vector is decoded as the sum over levels of length times centroid.

    Attributes:
        codebooks: One per level, coarse level first, float32.
        lengths: ``lengths[l][k]`` multiplies the centroid of level ``l`` where the code of level
            ``l - 1`` is ``k``; level 0 has one entry, 1. All are 1 without residual normalization.
            With it, codebooks hold directions and this is the stored norm: the least-squares
            length of the residuals in cell ``k``, so that codes alone decode to a vector.
        normalized: Whether residuals are scaled to length 1 before the next level looks at them.
        beam_width: Prefixes kept per item while it is encoded, ``>= 1``. With 1 each level takes
            the centroid nearest to the (normalized) residual; with more, each level keeps the
            prefixes that decode with the least error, and the best whole code wins.
    """

    codebooks: tuple[Float[Tensor, "_ dim"], ...]
    lengths: tuple[Float[Tensor, " _"], ...]
    normalized: bool
    beam_width: int = 1

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return the codes of each vector (see ``beam_width``); ties: the lowest code.

        Works in chunks, in float32, whatever the input's dtype and strides; codes are int64 on
        the codebooks' device.

        Raises:
            DataError: If the width differs from the codebooks', or a value is not finite.
        """
        return self.complete(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``, the levels after it encoded as in ``encode``."""
        device, dim = self.codebooks[0].device, self.codebooks[0].shape[1]
        if vectors.shape[1] != dim:
            raise DataError(
                f"Vectors have {vectors.shape[1]} dimensions but the codebooks {dim}; "
                "use the encoder that the codebooks were fitted on."
            )
        codes = torch.zeros((len(vectors), len(self.codebooks)), dtype=torch.int64, device=device)
        codes[:, : prefix.shape[1]] = prefix.to(device)
        for start in range(0, len(vectors), CHUNK_ROWS):
            part = codes[start : start + CHUNK_ROWS]
            chunk = vectors[start : start + CHUNK_ROWS].to(device, torch.float32)
            refuse_not_finite(chunk, first_row=start)
            if self.beam_width > 1:
                part[:] = self._best_of_beams(chunk, part[:, : prefix.shape[1]])
                continue
            for level in range(prefix.shape[1], len(self.codebooks)):
                rows = self.residual(chunk, part[:, :level])
                part[:, level] = nearest_codes(rows, self.codebooks[level])
        return codes

    def _best_of_beams(self, chunk: Tensor, prefix: Tensor) -> Tensor:
        beams = prefix.unsqueeze(1)  # [row, beam, level], best first
        for level in range(prefix.shape[1], len(self.codebooks)):
            num_rows, width, _ = beams.shape
            rows = chunk.repeat_interleave(width, dim=0)
            errors = self.candidate_errors(rows, beams.flatten(0, 1)).view(num_rows, -1)
            kept = min(self.beam_width if level + 1 < len(self.codebooks) else 1, errors.shape[1])
            best = errors.topk(kept, dim=1, largest=False).indices
            size = len(self.codebooks[level])
            parents = (best // size).unsqueeze(2).expand(-1, -1, level)
            beams = torch.cat([beams.gather(1, parents), (best % size).unsqueeze(2)], dim=2)
        return beams[:, 0]

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, stand for."""
        codebook = self.codebooks[0]
        codes = codes.to(codebook.device, torch.int64)
        total = codebook.new_zeros((len(codes), codebook.shape[1]))
        for level in range(codes.shape[1]):
            part = F.embedding(codes[:, level], self.codebooks[level])
            if self.normalized and level > 0:
                part = part * self.lengths[level][codes[:, level - 1]].unsqueeze(1)
            total += part
        return total

    def residual(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item dim"]:
        """Return what the level after ``prefix`` looks at: vector minus decoded prefix.

        With normalization it has length 1, or is 0 where the prefix already is exact.
        """
        if prefix.shape[1] == 0:
            return vectors
        left = vectors - self.decode(prefix)
        return _unit_length(left, vectors) if self.normalized else left

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        level = prefix.shape[1]
        codebook = self.codebooks[level]
        prefix = prefix.to(codebook.device, torch.int64)
        left = vectors.to(codebook.device, torch.float32) - self.decode(prefix)
        cross = left @ codebook.T
        squares = codebook.square().sum(dim=1)
        if self.normalized and level > 0:
            length = self.lengths[level][prefix[:, -1]].unsqueeze(1)
            cross, squares = cross * length, squares * length.square()
        return (left.square().sum(dim=1, keepdim=True) - 2 * cross + squares).clamp_(min=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``level_N.codebook`` and ``level_N.lengths``, levels counted from 1."""
        named = {f"level_{n}.codebook": t for n, t in enumerate(self.codebooks, start=1)}
        named |= {f"level_{n}.lengths": t for n, t in enumerate(self.lengths, start=1)}
        settings = {"normalized": self.normalized, "beam_width": self.beam_width}
        return named | {name: torch.tensor(value) for name, value in settings.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedRqKMeans":
        """Build the quantizer from what ``tensors`` returned; without ``beam_width`` it is 1."""
        normalized = bool(tensors["normalized"])
        levels = range(1, sum(name.endswith(".codebook") for name in tensors) + 1)
        return cls(
            codebooks=tuple(tensors[f"level_{n}.codebook"] for n in levels),
            lengths=tuple(tensors[f"level_{n}.lengths"] for n in levels),
            normalized=normalized,
            beam_width=int(tensors.get("beam_width", torch.tensor(1))),
        )


def refuse_not_finite(chunk: Float[Tensor, "row dim"], *, first_row: int) -> None:
    """Raise for rows that hold NaN or infinity, naming them; ``first_row`` numbers the chunk's."""
    bad = (~torch.isfinite(chunk).all(dim=1)).nonzero().flatten() + first_row
    if len(bad):
        raise DataError(
            f"{len(bad)} vectors hold NaN or infinity (first rows: {bad[:5].tolist()}); "
            "remove those items or encode them again."
        )


def _unit_length(left: Tensor, vectors: Tensor) -> Tensor:
    norm = left.norm(dim=1, keepdim=True)
    is_noise = norm <= _NOISE * vectors.norm(dim=1, keepdim=True)
    return torch.where(is_noise, torch.zeros_like(left), left / norm.clamp(min=1e-30))
