"""Pseudo-queries: words drawn from the texts of items, anew in every turn."""

import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sidrec.training.counter_rng import key_of, uniform

_MARKS = string.punctuation + "«»“”„‚‘\u2019…—\u2013·¿¡。、，！？：；（）「」"  # noqa: RUF001
_FEWEST, _MOST = 2, 8  # words of a pseudo-query


@dataclass(frozen=True)
class PseudoQueries:
    """Draw pseudo-queries from item texts: half of them spans, half of them sets of words.

    A span is 2 to 8 words in a row. A set is as many distinct words, each drawn in proportion to
    ln(texts / texts that hold it), so that names and topics come more often than "the". Words are
    what stands between blanks, without the punctuation around it; in scripts without blanks they
    are whole clauses.

    Attributes:
        texts: Text of each item; row = item_index.
        weights: Weight of each word in lower case.

    Source:
        Tay et al. 2022, DSI (https://arxiv.org/abs/2202.06991), sec. 3.1, indexes documents
        by their first tokens, by sets of words, or by spans ("inverted index"); Zhuang et al.
        2022, DSI-QG (https://arxiv.org/abs/2206.10128), by generated queries. Here the two drawn
        forms of the first are mixed, and words of a set are weighed.
    """

    texts: Sequence[str]
    weights: dict[str, float]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "PseudoQueries":
        """Count the texts that hold each word, in one pass."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update({word.lower() for word in _words(text)})
        weights = {word: math.log(len(texts) / count) for word, count in counts.items()}
        return cls(texts, weights)

    def draw(
        self, items: Int64[np.ndarray, " row"], rows: Int64[np.ndarray, " row"], *, seed: int
    ) -> list[str]:
        """Return a pseudo-query for each item; an item whose text has no word gives its text.

        Args:
            items: item_index of each row.
            rows: Number of each row's draw: the same numbers give the same words.
            seed: Seed of the draws.
        """
        chances = [uniform(rows, key=key_of(seed, name)) for name in ("length", "kind", "place")]
        return [
            self._query(self.texts[item], *chance, key=key_of(seed, row))
            for item, row, *chance in zip(items.tolist(), rows.tolist(), *chances, strict=True)
        ]

    def _query(self, text: str, length: float, kind: float, place: float, *, key: int) -> str:
        words = _words(text)
        if not words:
            return text
        count = _FEWEST + int(length * (_MOST - _FEWEST + 1))
        if kind < 0.5:
            first = int(place * (max(len(words) - count, 0) + 1))
            return " ".join(words[first : first + count])
        distinct = {word.lower(): word for word in reversed(words)}  # written as at first
        weight = np.array([self.weights[word] for word in distinct])
        race = -np.log1p(-uniform(np.arange(len(distinct)), key=key)) / np.maximum(weight, 1e-9)
        written = list(distinct.values())
        return " ".join(written[place] for place in np.argsort(race)[:count].tolist())


def _words(text: str) -> list[str]:
    return [word for part in text.split() if (word := part.strip(_MARKS))]
