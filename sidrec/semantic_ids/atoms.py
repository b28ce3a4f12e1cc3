"""A fitted dictionary: vectors to the atoms that they are made of, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.semantic_ids.checked_rows import chunks_of

_RIDGE = 1e-6  # keeps the projection defined where a prefix names an atom twice


@dataclass(frozen=True, slots=True)
class FittedDictionary:
    """Fitted atoms. A vector is decoded as the mean plus, per level, a length times a direction.

    All levels choose from the same atoms: the code of a level says which atom, and with ``signed``
    in which of its two directions. The coefficient of the vector is not part of the code; decoding
    uses the length that was best for the fitted vectors with that code at that level.

    Attributes:
        mean: Subtracted before coding.
        atoms: Of length 1.
        lengths: ``lengths[l, k]`` multiplies direction ``k`` at level ``l``.
        signed: Codes ``0 … A - 1`` are the ``A`` atoms and ``A … 2 A - 1`` their opposites;
            otherwise a code stands for an atom in either direction.
    """

    mean: Float[Tensor, " dim"]
    atoms: Float[Tensor, "atom dim"]
    lengths: Float[Tensor, "level code"]
    signed: bool

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each level, the same for all."""
        return (self.lengths.shape[1],) * self.lengths.shape[0]

    @property
    def directions(self) -> Float[Tensor, "code dim"]:
        """What each code adds for a length of 1."""
        return torch.cat([self.atoms, -self.atoms]) if self.signed else self.atoms

    def encode(self, vectors: Float[Tensor, "item dim"]) -> Int[Tensor, "item level"]:
        """Return the atoms that orthogonal matching pursuit takes, in the order it takes them.

        Each level takes the atom that correlates most with what the least-squares fit on the
        atoms before it leaves over (ties: the lowest code); no atom is taken twice.

        Raises:
            DataError: If the width differs from the atoms', or a value is not finite.

        Source:
            Pati et al. 1993 (https://doi.org/10.1109/ACSSC.1993.342465).
        """
        return self.complete(vectors, torch.zeros((len(vectors), 0), dtype=torch.int64))

    def complete(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Int[Tensor, "item level"]:
        """Return codes that begin with ``prefix``, the pursuit going on from there."""
        device, num_levels = self.atoms.device, len(self.lengths)
        codes = torch.zeros((len(vectors), num_levels), dtype=torch.int64, device=device)
        codes[:, : prefix.shape[1]] = prefix.to(device)
        for rows, chunk in chunks_of(vectors, dim=len(self.mean), device=device):
            part = codes[rows]
            for level in range(prefix.shape[1], num_levels):
                part[:, level] = self._best(chunk - self.mean, part[:, :level])
        return codes

    def decode(self, codes: Int[Tensor, "item prefix"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that the codes, or their first levels alone, stand for."""
        codes = codes.to(self.atoms.device, torch.int64)
        total = self.mean.repeat(len(codes), 1)
        directions = self.directions
        for level, column in enumerate(codes.unbind(dim=1)):
            total += self.lengths[level][column].unsqueeze(1) * directions[column]
        return total

    def candidate_errors(
        self, vectors: Float[Tensor, "item dim"], prefix: Int[Tensor, "item prefix"]
    ) -> Float[Tensor, "item code"]:
        """Return the squared error of the decoded vector for each code after ``prefix``."""
        left = vectors.to(self.atoms.device, torch.float32) - self.decode(prefix)
        lengths = self.lengths[prefix.shape[1]]
        cross = left @ self.directions.T * lengths
        return (left.square().sum(dim=1, keepdim=True) - 2 * cross + lengths.square()).clamp_(min=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean``, ``atoms``, ``lengths`` and ``signed``."""
        named = {"mean": self.mean, "atoms": self.atoms, "lengths": self.lengths}
        return named | {"signed": torch.tensor(self.signed)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FittedDictionary":
        """Build the quantizer from what ``tensors`` returned."""
        named = {name: tensors[name] for name in ("mean", "atoms", "lengths")}
        return cls(**named, signed=bool(tensors["signed"]))

    def _best(self, centered: Tensor, prefix: Tensor) -> Tensor:
        """Return the code that correlates most with what the projection on ``prefix`` leaves."""
        scores = self._left(centered, prefix) @ self.atoms.T  # [row, atom]
        scores = torch.cat([scores, -scores], dim=1) if self.signed else scores.abs()
        taken = prefix % len(self.atoms)
        if self.signed:
            taken = torch.cat([taken, taken + len(self.atoms)], dim=1)
        best: Tensor = scores.scatter(1, taken, -torch.inf).argmax(dim=1)
        return best

    def _left(self, centered: Tensor, prefix: Tensor) -> Tensor:
        if prefix.shape[1] == 0:
            return centered
        chosen = self.directions[prefix]  # [row, prefix, dim]
        gram = chosen @ chosen.mT + _RIDGE * torch.eye(prefix.shape[1], device=chosen.device)
        products = chosen @ centered.unsqueeze(2)  # [row, prefix, 1]
        fit: Tensor = chosen.mT @ torch.linalg.solve(gram, products)  # [row, dim, 1]
        return centered - fit.squeeze(2)
