"""The Semantic IDs in which a task answers: tokens, codes, trie and prior."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.generator.prior import CodebookPrior
from sidrec.generator.trie import SemanticIdTrie
from sidrec.generator.vocabulary import CodeVocabulary
from sidrec.types import SemanticIdTable


class CodeSpace(nn.Module):
    """All Semantic IDs that a task may answer with; nothing outside its trie can be generated.

    Both tasks share one, unless each has IDs of its own.

    Args:
        vocabulary: Tokens of the codes.
        table: Semantic ID of every item.
        popularity: Train interactions of each item: orders items that share a Semantic ID.
        prior: Adds what the request's vector says; None leaves T5 alone.
    """

    codes: Tensor

    def __init__(
        self,
        vocabulary: CodeVocabulary,
        table: SemanticIdTable,
        popularity: Int[Tensor, " item"],
        prior: CodebookPrior | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary, self.prior = vocabulary, prior
        codes = table.codes.long()
        self.register_buffer("codes", codes, persistent=False)
        self._trie = SemanticIdTrie.from_table(
            SemanticIdTable(codes, table.codebook_sizes), popularity
        )

    @property
    def trie(self) -> SemanticIdTrie:
        """The catalogue, on the device of the weights."""
        if self._trie.items.device != self.codes.device:
            self._trie = self._trie.to(self.codes.device)
        return self._trie

    def tokens_of(self, items: Int[Tensor, "*any"]) -> Int[Tensor, "*any level"]:
        """Return the tokens of the Semantic IDs of items, by item_index."""
        return self.vocabulary.tokens_of(self.codes[items])

    def even_mass(self, num_requests: int) -> Float[Tensor, "request bound"]:
        """Return the mass before each position of the trie where every item counts the same."""
        even = torch.arange(self.trie.num_items + 1, device=self.codes.device).double()
        return even.expand(num_requests, -1)
