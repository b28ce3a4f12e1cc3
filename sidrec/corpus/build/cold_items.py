"""Cold-start items of a split: chosen, and counted while the corpus is written."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Bool

from sidrec.corpus.schema import Split
from sidrec.corpus.sources.splits import hash_fraction

Answers = list[tuple[int, float, int]]  # item_index, weight and grade


def held_out_items(item_ids: pl.Series, fraction: float) -> Bool[np.ndarray, " item"]:
    """Mark a share of the items, rounded up: those whose ids have the smallest hashes.

    Args:
        item_ids: The catalogue's own id of each item.
        fraction: Share of the items, in [0, 1).

    Source:
        Rajput et al. 2023 (https://arxiv.org/abs/2305.05065), section 4.3: 5 % of the test items
        are taken out of train. Differs: drawn from all items, so that queries take part.
    """
    held_out = np.zeros(len(item_ids), bool)
    if fraction > 0:
        hashes = [hash_fraction(f"cold {item_id}") for item_id in item_ids]
        held_out[np.argsort(hashes, kind="stable")[: math.ceil(fraction * len(hashes))]] = True
    return held_out


class ItemUse:
    """Use of each item in the splits of a corpus, added up while it is written.

    Args:
        held_out: Marks the items that are held out of train and valid.
    """

    def __init__(self, held_out: Bool[np.ndarray, " item"]) -> None:
        self.held_out = held_out
        self._trained, self._consumed = np.zeros((2, len(held_out)), bool)
        self._targets = np.zeros(len(held_out), np.int64)  # recommendation requests of test
        self._answers: list[list[int]] = []  # of each search request of test

    def add_interactions(self, rows: pl.DataFrame, asked: pl.DataFrame) -> None:
        """Add interactions, and those of them that are targets of test requests."""
        items = rows["item_index"].to_numpy()
        self._consumed[items] = True
        self._trained[items[(rows["split"] == "train").to_numpy()]] = True
        np.add.at(self._targets, asked["item_index"].to_numpy(), 1)

    def late(self) -> Bool[np.ndarray, " item"]:
        """Mark the items with interactions, none of which is in train."""
        return self._consumed & ~self._trained

    def add_queries(self, answers: Sequence[Answers], splits: Iterable[Split]) -> None:
        """Add queries by their answers, after all interactions."""
        for found, split in zip(answers, splits, strict=True):
            items = [item for item, _, _ in found]
            if split == "train":
                self._trained[items] = True
            elif split == "test":
                self._answers.append(items)

    def counts(self) -> dict[str, int]:
        """Count the held-out items, those that only test asks for, and the requests for them."""
        cold = ~self._trained
        asked = [own for items in self._answers if (own := [one for one in items if cold[one]])]
        named = cold & (self._targets > 0)
        named[[item for own in asked for item in own]] = True
        return {
            "items_held_out": int(self.held_out.sum()),
            "cold_start_items": int(named.sum()),
            "cold_start_requests_search": len(asked),
            "cold_start_requests_recommendation": int(self._targets[cold].sum()),
        }
