"""Fitted codebooks of residual k-means."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.quantizers.base import FittedQuantizer

_NOISE = 1e-6  # a residual shorter than this fraction of its vector is rounding, not direction


@dataclass(frozen=True, slots=True)
class FittedRqKMeans(FittedQuantizer):
    """Fitted residual k-means; a vector decodes to the sum over levels of length times centroid.

    Attributes:
        codebooks: One per level, coarse level first, float32.
        lengths: ``lengths[l][k]`` multiplies the centroid of level ``l`` where the code of level
            ``l - 1`` is ``k``; level 0 has one entry, 1. All are 1 without residual normalization.
            With it, codebooks hold directions and this is the stored norm: the least-squares
            length of the residuals in cell ``k``, so that codes alone decode to a vector.
        normalized: Whether residuals are scaled to length 1 before the next level.
        beam_width: Prefixes kept per item while it is encoded, ``>= 1``. With 1 each level takes
            the centroid nearest to the (normalized) residual; with more, each level keeps the
            prefixes that decode with the least error, and the best whole code wins.
        offset: Subtracted before coding and added when decoding: the mean of vectors whose common
            part far exceeds their differences (see ``common_offset``); else None.
    """

    codebooks: tuple[Float[Tensor, "_ dim"], ...]
    lengths: tuple[Float[Tensor, " _"], ...]
    normalized: bool
    beam_width: int = 1
    offset: Float[Tensor, " dim"] | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode_chunk(
        self, chunk: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Int[Tensor, "row level"]:
        """Return codes of all levels that begin with ``prefix`` (see ``beam_width``)."""
        chunk = self._centered(chunk)
        if self.beam_width > 1:
            return self._best_of_beams(chunk, prefix)
        codes = prefix
        for codebook in self.codebooks[prefix.shape[1] :]:
            code = nearest_codes(self.residual(chunk, codes), codebook)
            codes = torch.cat([codes, code.unsqueeze(1)], dim=1)
        return codes

    def _best_of_beams(self, chunk: Tensor, prefix: Tensor) -> Tensor:
        beams = prefix.unsqueeze(1)  # [row, beam, level], best first
        for level in range(prefix.shape[1], len(self.codebooks)):
            num_rows, width, _ = beams.shape
            rows = chunk.repeat_interleave(width, dim=0)
            errors = self._errors(rows, beams.flatten(0, 1)).view(num_rows, -1)
            kept = min(self.beam_width if level + 1 < len(self.codebooks) else 1, errors.shape[1])
            best = errors.topk(kept, dim=1, largest=False).indices
            size = len(self.codebooks[level])
            parents = (best // size).unsqueeze(2).expand(-1, -1, level)
            beams = torch.cat([beams.gather(1, parents), (best % size).unsqueeze(2)], dim=2)
        return beams[:, 0]

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, decode to."""
        decoded = self._sum(codes)
        return decoded if self.offset is None else decoded + self.offset

    def next_code_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        device = self.codebooks[0].device
        rows = self._centered(vectors.to(device, torch.float32))
        return self._errors(rows, prefix.to(device, torch.int64))

    def residual(
        self, rows: Float[Tensor, "row dim"], prefix: Int[Tensor, "row prefix"]
    ) -> Float[Tensor, "row dim"]:
        """Return the input of the level after ``prefix``: row minus decoded prefix.

        The ``offset`` is already subtracted from the rows. With normalization the residual has
        length 1, or is 0 where the prefix is exact.
        """
        if prefix.shape[1] == 0:
            return rows
        left = rows - self._sum(prefix)
        return _unit_length(left, rows) if self.normalized else left

    def _centered(self, rows: Tensor) -> Tensor:
        return rows if self.offset is None else rows - self.offset

    def _sum(self, codes: Tensor) -> Tensor:
        codebook = self.codebooks[0]
        codes = codes.to(codebook.device, torch.int64)
        total = codebook.new_zeros((len(codes), codebook.shape[1]))
        for level in range(codes.shape[1]):
            part = F.embedding(codes[:, level], self.codebooks[level])
            if self.normalized and level > 0:
                part = part * self.lengths[level][codes[:, level - 1]].unsqueeze(1)
            total += part
        return total

    def _errors(self, rows: Tensor, prefix: Tensor) -> Tensor:
        level, codebook = prefix.shape[1], self.codebooks[prefix.shape[1]]
        left = rows - self._sum(prefix)
        cross = left @ codebook.T
        squares = codebook.square().sum(dim=1)
        if self.normalized and level > 0:
            length = self.lengths[level][prefix[:, -1]].unsqueeze(1)
            cross, squares = cross * length, squares * length.square()
        errors: Tensor = left.square().sum(dim=1, keepdim=True) - 2 * cross + squares
        return errors.clamp_(min=0)


def _unit_length(left: Tensor, vectors: Tensor) -> Tensor:
    norm = left.norm(dim=1, keepdim=True)
    is_noise = norm <= _NOISE * vectors.norm(dim=1, keepdim=True)
    return torch.where(is_noise, torch.zeros_like(left), left / norm.clamp(min=1e-30))
