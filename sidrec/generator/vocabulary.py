"""The codes of every level as tokens behind the text vocabulary of a T5."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CodeVocabulary:
    """Which token stands for which code of which level.

    Attributes:
        first_token: Number of text tokens; code 0 of level 0 has this token.
        codebook_sizes: Number of codes at each level.
    """

    first_token: int
    codebook_sizes: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Text and code tokens together."""
        return self.first_token + sum(self.codebook_sizes)

    @property
    def level_starts(self) -> list[int]:
        """Token of code 0 of each level."""
        return [self.first_token + n for n in accumulate(self.codebook_sizes, initial=0)][:-1]

    def level_token_ids(self) -> list[Int[Tensor, " _"]]:
        """Return the tokens of each level's codes, in the order of the codes."""
        pairs = zip(self.level_starts, self.codebook_sizes, strict=True)
        return [torch.arange(start, start + size) for start, size in pairs]

    def tokens_of(self, codes: Int[Tensor, "*any level"]) -> Int[Tensor, "*any level"]:
        """Return the tokens of Semantic IDs.

        >>> CodeVocabulary(100, (4, 4)).tokens_of(torch.tensor([[3, 1]]))
        tensor([[103, 105]])
        """
        return codes + codes.new_tensor(self.level_starts)
