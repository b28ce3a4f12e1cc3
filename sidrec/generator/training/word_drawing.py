"""Pseudo-queries: words drawn from the texts of items, anew in every turn."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from sidrec.training.counter_rng import key_of, uniform

_WORD = re.compile(r"\w[\w'\u2019-]*")
_FEWEST, _MOST = 2, 8  # words of a pseudo-query


@dataclass(frozen=True)
class WordDrawing:
    """Draw pseudo-queries from item texts: half of them spans, half of them sets of words.

    A span is 2 to 8 words in a row. A set is as many distinct words, each drawn in proportion to
    ln(texts / texts that hold it), so that names and topics come more often than "the". Nothing
    is stored but the number of texts of each word.

    Attributes:
        texts: Text of each item; row = item_index.

    Source:
        Tay et al. 2022, DSI (https://arxiv.org/abs/2202.06991), sec. 3.1.1, indexes documents
        by their first tokens, by sets of words, or by spans ("inverted index"); Zhuang et al.
        2022, DSI-QG (https://arxiv.org/abs/2206.10128), by generated queries. Here the two drawn
        forms of the first are mixed, and words of a set are weighed.
    """

    texts: Sequence[str]

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
        words = _WORD.findall(text)
        if not words:
            return text
        count = _FEWEST + int(length * (_MOST - _FEWEST + 1))
        if kind < 0.5:
            first = int(place * (max(len(words) - count, 0) + 1))
            return " ".join(words[first : first + count])
        distinct = list(dict.fromkeys(words))
        weight = np.array([self._weights[word.lower()] for word in distinct])
        race = -np.log1p(-uniform(np.arange(len(distinct)), key=key)) / np.maximum(weight, 1e-9)
        return " ".join(distinct[place] for place in np.argsort(race)[:count].tolist())

    @cached_property
    def _weights(self) -> dict[str, float]:
        """Weight of each word in lower case: ln(texts / texts that hold it)."""
        counts: Counter[str] = Counter()
        for text in self.texts:
            counts.update({word.lower() for word in _WORD.findall(text)})
        return {word: math.log(len(self.texts) / count) for word, count in counts.items()}
