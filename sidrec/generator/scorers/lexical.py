"""Lexical scorer: BM25 between the words of a query and the words of item texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import DataError
from sidrec.generator.scorers.scorer import Scorer, ScorerQuery


class LexicalScorer(Scorer):
    """BM25 scores, from a sparse matrix of terms by items.

    Uses Lucene's variant with ``k1 = 1.5`` and ``b = 0.75``, without English stop words and
    without stemming. A batch costs one addition per posting of its terms, on the CPU, and
    ``4 * request * item`` bytes for the result.

    Args:
        terms: Vocabulary, in the order of the matrix's rows.
        starts: Postings of term ``t`` are ``[starts[t], starts[t + 1])``.
        items: item_index of each posting.
        weights: BM25 weight of each posting.
        num_items: Number of items in the catalogue.

    Source:
        Robertson et al. 1994, in the form of bm25s (https://arxiv.org/abs/2407.03618).
    """

    initial_weight = 0.7

    def __init__(
        self, *, terms: list[str], starts: Tensor, items: Tensor, weights: Tensor, num_items: int
    ) -> None:
        super().__init__()
        self._rows = {term: row for row, term in enumerate(terms)}
        self._matrix = sp.csr_array(
            (weights.numpy(), items.numpy(), starts.numpy()), shape=(len(terms), num_items)
        )

    @classmethod
    def of_texts(cls, texts: list[str]) -> "LexicalScorer":
        """Index the texts of all items; row = item_index.

        Raises:
            DataError: If no text has a word.
        """
        documents = words_of(texts)
        if not any(documents):
            raise DataError(
                "Scorer 'lexical' needs words, but no item text has any; leave it out of "
                "model.prior.search."
            )
        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        index.index(documents, show_progress=False)
        starts = index.scores["indptr"]
        terms = sorted(index.vocab_dict, key=index.vocab_dict.__getitem__)
        return cls(
            terms=terms[: len(starts) - 1],  # the last term is an empty word without postings
            starts=torch.from_numpy(starts.astype(np.int64)),
            items=torch.from_numpy(index.scores["indices"].astype(np.int64)),
            weights=torch.from_numpy(index.scores["data"].astype(np.float32)),
            num_items=len(texts),
        )

    def forward(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        """Return BM25 scores on the CPU; 0 for items that share no word with the query."""
        return torch.from_numpy(self.scores(query.texts))

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "text item"]:
        """Return the BM25 score of every item for each text; repeated words count repeatedly."""
        counts = [
            Counter(self._rows[word] for word in words if word in self._rows)
            for words in words_of(list(texts))
        ]
        starts = np.cumsum([0, *map(len, counts)])
        columns = np.array([term for count in counts for term in count], np.int64)
        values = np.array([n for count in counts for n in count.values()], np.float32)
        asked = sp.csr_array((values, columns, starts), shape=(len(counts), len(self._rows)))
        found: Float[np.ndarray, "text item"] = (asked @ self._matrix).toarray()
        return found.astype(np.float32, copy=False)

    def state(self) -> dict[str, Any]:
        """Return vocabulary and postings."""
        matrix = self._matrix
        return {
            "terms": list(self._rows),
            "starts": torch.from_numpy(matrix.indptr),
            "items": torch.from_numpy(matrix.indices),
            "weights": torch.from_numpy(matrix.data),
            "num_items": matrix.shape[1],
        }


def words_of(texts: list[str]) -> list[list[str]]:
    """Return the lower-case words of each text, without English stop words."""
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )
    return words
