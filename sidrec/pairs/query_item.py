"""Query–item pairs: the left side is a train query, the right side one of its items."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from sidrec.training.counter_rng import key_of, uniform

_ROWS_AT_ONCE = 65_536


class DrawnPairs(NamedTuple):
    """Drawn pairs as row numbers; their texts come from the token stores.

    Attributes:
        left: Train query number (search) or item_index (recommendation).
        right_item: item_index of the right side.
        known_positives: item_index of the items that are not negatives for the row, padded with -1.
    """

    left: Int64[np.ndarray, " pair"]
    right_item: Int64[np.ndarray, " pair"]
    known_positives: Int64[np.ndarray, "pair known"]


@dataclass(frozen=True, slots=True)
class QueryItemPairs:
    """Train queries and the items that answer them.

    Attributes:
        item_starts: Items of train query ``q`` are at ``[item_starts[q], item_starts[q + 1])``.
        item_values: item_index, grouped by query.
        rows: ``query``: a row is a query, and one of its items is drawn anew every epoch;
            ``pair``: every (query, item) is a row.
        weight_sums: Running sum of the weights of ``item_values``, from 0; a query's item is drawn
            in proportion to its weight. None: all items of a query weigh alike. ``pair`` ignores
            it.
    """

    item_starts: Int64[np.ndarray, " query_plus_1"]
    item_values: Int64[np.ndarray, " pair"]
    rows: Literal["query", "pair"]
    weight_sums: Float64[np.ndarray, " pair_plus_1"] | None = None

    def __post_init__(self) -> None:
        empty = np.flatnonzero(np.diff(self.item_starts) == 0)
        if empty.size:
            raise DataError(
                f"{empty.size} train queries have no item (first: train query {empty[0]}); "
                "run `sidrec prepare` again."
            )

    def __len__(self) -> int:
        return len(self.item_starts) - 1 if self.rows == "query" else len(self.item_values)

    def draw(self, rows: Int64[np.ndarray, " pair"], *, seed: int, epoch: int) -> DrawnPairs:
        """Return the pairs of some rows; the same arguments give the same pairs."""
        if self.rows == "pair":
            query = np.searchsorted(self.item_starts, rows, side="right") - 1
            place = rows
        else:
            query = rows
            first, count = self.item_starts[query], self._num_items(query)
            share = uniform(query, key=key_of(seed, epoch, "item of query"))
            place = self._place(first, count, share)
        return DrawnPairs(query, self.item_values[place], self._items_of(query))

    def log_frequency(self, num_items: int) -> Float32[np.ndarray, " item"]:
        """Return ln(probability that a row's right side is the item); -inf if it never is."""
        counts, each = np.diff(self.item_starts), None
        if self.rows == "query":
            sums = self.weight_sums
            weights = np.ones(len(self.item_values)) if sums is None else np.diff(sums)
            totals = counts if sums is None else np.diff(sums[self.item_starts])
            each = weights / np.repeat(totals, counts)
        total = np.bincount(self.item_values, weights=each, minlength=num_items)
        with np.errstate(divide="ignore"):
            logarithm: Float32[np.ndarray, " item"] = np.log(total / total.sum()).astype(np.float32)
        return logarithm

    def _place(
        self,
        first: Int64[np.ndarray, " pair"],
        count: Int64[np.ndarray, " pair"],
        share: Float64[np.ndarray, " pair"],
    ) -> Int64[np.ndarray, " pair"]:
        """Return the place of the drawn item in ``item_values``; ``share`` is in [0, 1)."""
        if self.weight_sums is None:
            drawn: Int64[np.ndarray, " pair"] = first + (share * count).astype(np.int64)
            return drawn
        low, high = self.weight_sums[first], self.weight_sums[first + count]
        drawn = np.searchsorted(self.weight_sums, low + share * (high - low), side="right") - 1
        drawn[:] = np.clip(drawn, first, first + count - 1)  # rounding may reach a neighbor
        return drawn

    def _num_items(self, query: Int64[np.ndarray, " pair"]) -> Int64[np.ndarray, " pair"]:
        counts: Int64[np.ndarray, " pair"] = self.item_starts[query + 1] - self.item_starts[query]
        return counts

    def _items_of(self, query: Int64[np.ndarray, " pair"]) -> Int64[np.ndarray, "pair known"]:
        count = self._num_items(query)
        offsets = np.arange(int(count.max()) if len(count) else 0)
        place = self.item_starts[query][:, None] + offsets
        inside = offsets < count[:, None]
        return np.where(inside, self.item_values[np.where(inside, place, 0)], -1)


def train_query_rows(corpus: Corpus) -> Int64[np.ndarray, " query"]:
    """Return the rows of ``corpus.queries`` that belong to the train split, ascending."""
    found, first = [], 0
    for table in corpus.queries.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        is_train = table.column("split").to_numpy(zero_copy_only=False) == "train"
        found.append(np.flatnonzero(is_train) + first)
        first += len(is_train)
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def query_item_pairs(corpus: Corpus, *, rows: Literal["query", "pair"]) -> QueryItemPairs:
    """Return the pairs of the train queries and of no other split.

    Train queries are numbered 0, 1, … in the order of ``queries.parquet``.
    """
    counts: list[np.ndarray] = []
    values: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for table in corpus.queries.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        is_train = table.column("split").to_numpy(zero_copy_only=False) == "train"
        items = table.column("item_index").combine_chunks().filter(is_train)
        counts.append(items.value_lengths().to_numpy(zero_copy_only=False))
        values.append(items.flatten().to_numpy(zero_copy_only=False))
        if "weight" in table.column_names:
            own = table.column("weight").combine_chunks().filter(is_train)
            weights.append(own.flatten().to_numpy(zero_copy_only=False))
    starts = np.zeros(sum(map(len, counts)) + 1, dtype=np.int64)
    if counts:
        np.cumsum(np.concatenate(counts), out=starts[1:])
    flat = np.concatenate(values).astype(np.int64) if values else np.empty(0, np.int64)
    sums = None
    if weights:
        sums = np.concatenate([[0.0], np.cumsum(np.concatenate(weights), dtype=np.float64)])
    return QueryItemPairs(starts, flat, rows, sums)
