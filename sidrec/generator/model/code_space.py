"""Semantic IDs of a task inside the generator: tokens, codes and trie."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.generator.decoding.trie import SemanticIdTrie
from sidrec.generator.model.prefix_prior import PrefixTree
from sidrec.types import SemanticIdTable, Task


@dataclass(frozen=True, slots=True)
class CodeVocabulary:
    """Token of every code of every level.

    Attributes:
        first_token: Number of text tokens; code 0 of level 0 has this token.
        codebook_sizes: Number of codes at each level.
        num_shared_levels: Number of first levels whose tokens another vocabulary also uses.
        own_start: First token of the levels after the shared ones; None: directly after them.
    """

    first_token: int
    codebook_sizes: tuple[int, ...]
    num_shared_levels: int = 0
    own_start: int | None = None

    @property
    def num_tokens(self) -> int:
        """Number of text and code tokens, including those of a vocabulary placed before this."""
        return self.level_starts[-1] + self.codebook_sizes[-1]

    @property
    def level_starts(self) -> list[int]:
        """Token of code 0 of each level."""
        starts = [self.first_token + n for n in accumulate(self.codebook_sizes, initial=0)][:-1]
        if self.own_start is None:
            return starts
        shared, own = starts[: self.num_shared_levels], starts[self.num_shared_levels :]
        return [*shared, *(start - own[0] + self.own_start for start in own)]

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


def vocabularies_of(
    first_token: int, codebook_sizes: Mapping[Task, tuple[int, ...]], *, num_shared_levels: int
) -> dict[Task, CodeVocabulary]:
    """Return each task's vocabulary: tokens of the first levels shared, those of the others not.

    >>> both = {"search": (4, 3), "recommendation": (4, 5)}
    >>> made = vocabularies_of(10, both, num_shared_levels=1)
    >>> [made[task].level_starts for task in both]
    [[10, 14], [10, 17]]
    """
    search = CodeVocabulary(first_token, codebook_sizes["search"])
    own = CodeVocabulary(
        first_token, codebook_sizes["recommendation"], num_shared_levels, search.num_tokens
    )
    return {"search": search, "recommendation": own}


class CodeSpace(nn.Module):
    """Semantic IDs that a task can generate: nothing outside the trie is ever decoded.

    Both tasks share one object unless each has IDs of its own.

    Args:
        vocabulary: Tokens of the codes.
        table: Semantic ID of every item.
        popularity: Train interactions of each item; orders items that share a Semantic ID.
    """

    codes: Tensor

    def __init__(
        self,
        vocabulary: CodeVocabulary,
        table: SemanticIdTable,
        popularity: Int[Tensor, " item"],
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        codes = table.codes.long()
        self.register_buffer("codes", codes, persistent=False)
        self._trie = SemanticIdTrie.from_table(
            SemanticIdTable(codes, table.codebook_sizes), popularity
        )
        self._tree: PrefixTree | None = None

    @property
    def trie(self) -> SemanticIdTrie:
        """Trie of the catalogue, on the device of the weights."""
        if self._trie.items.device != self.codes.device:
            self._trie, self._tree = self._trie.to(self.codes.device), None
        return self._trie

    @property
    def tree(self) -> PrefixTree:
        """Prefixes of the catalogue, on the device of the weights."""
        trie = self.trie
        if self._tree is None:
            self._tree = PrefixTree.of(trie)
        return self._tree

    def tokens_of(self, items: Int[Tensor, "*any"]) -> Int[Tensor, "*any level"]:
        """Return the tokens of the Semantic IDs of items, by item_index."""
        return self.vocabulary.tokens_of(self.codes[items])

    def even_mass(self, num_requests: int) -> Float[Tensor, "request bound"]:
        """Return the cumulative mass before each position of the trie under a uniform prior."""
        even = torch.arange(self.trie.num_items + 1, device=self.codes.device).double()
        return even.expand(num_requests, -1)
