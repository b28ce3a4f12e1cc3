"""Training examples of both tasks as virtual rows: nothing is materialised but running counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.generator.batches import GeneratorBatch, pad_items
from sidrec.generator.schedule import BucketedSchedule
from sidrec.pairs.batches import BatchNumber
from sidrec.pairs.permutation import key_of, uniform
from sidrec.pairs.query_item import QueryItemPairs


@dataclass(frozen=True)
class SearchExamples:
    """Train queries, then indexing rows: item text → the item's own Semantic ID.

    Attributes:
        pairs: Train queries and their items.
        queries: Text of each train query.
        item_texts: Row = item_index.
        num_indexing: Indexing rows of an epoch; they walk through the items in turn.
    """

    pairs: QueryItemPairs
    queries: Sequence[str]
    item_texts: Sequence[str]
    num_indexing: int

    def __len__(self) -> int:
        return len(self.pairs) + self.num_indexing

    def lengths(self) -> Int64[np.ndarray, " example"]:
        """Return about how long each row is, in characters: only for sorting."""
        queries = np.array([len(text) for text in self.queries], dtype=np.int64)
        return np.concatenate([queries, np.zeros(self.num_indexing, dtype=np.int64)])

    def batch(
        self, rows: Int64[np.ndarray, " example"], *, seed: int, epoch: int
    ) -> GeneratorBatch:
        """Return some rows; the same arguments give the same batch."""
        is_query = rows < len(self.pairs)
        drawn = self.pairs.draw(rows[is_query], seed=seed, epoch=epoch)
        offset = epoch * self.num_indexing
        indexed = (rows - len(self.pairs) + offset) % len(self.item_texts)
        target, text_rows = indexed.copy(), np.full(len(rows), -1)
        target[is_query], text_rows[is_query] = drawn.right_item, drawn.left
        texts = [
            self.queries[query] if query >= 0 else self.item_texts[item]
            for query, item in zip(text_rows.tolist(), indexed.tolist(), strict=True)
        ]
        none = torch.full((len(rows), 0), -1)
        return GeneratorBatch(
            task="search",
            texts=texts,
            text_rows=torch.from_numpy(text_rows),
            indexed_item=torch.from_numpy(np.where(is_query, -1, indexed)),
            history=none,
            target=torch.from_numpy(target),
            excluded=none,
            request_rows=torch.from_numpy(rows),
        )


@dataclass(frozen=True)
class RecommendationExamples:
    """Every train interaction that has one before it: history → the item that came.

    Attributes:
        interactions: Train interactions only.
        row_starts: Rows of user ``u`` are ``[row_starts[u], row_starts[u + 1])``.
        max_history_items: Only the most recent ones are read.
        target_window: The target is drawn from the next so many interactions; 1 is the next one.
        history_dropout: Probability with which an item of a history is left out.
    """

    interactions: Interactions
    row_starts: Int64[np.ndarray, " bound"]
    max_history_items: int
    target_window: int
    history_dropout: float

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        *,
        max_history_items: int,
        target_window: int,
        history_dropout: float,
    ) -> "RecommendationExamples":
        """Lay virtual rows over train histories.

        Raises:
            ConfigError: If a setting is out of range.
        """
        if max_history_items < 1 or target_window < 1 or not 0 <= history_dropout < 1:
            raise ConfigError(
                "max_history_items and target_window must be 1 or more and history_dropout in "
                f"[0, 1), got {max_history_items}, {target_window}, {history_dropout}."
            )
        rows = np.maximum(np.diff(interactions.user_starts) - 1, 0)
        row_starts = np.concatenate([[0], np.cumsum(rows)])
        return cls(interactions, row_starts, max_history_items, target_window, history_dropout)

    def __len__(self) -> int:
        return int(self.row_starts[-1])

    def lengths(self) -> Int64[np.ndarray, " example"]:
        """Return the number of history items of each row."""
        rows = np.arange(len(self), dtype=np.int64)
        user = np.searchsorted(self.row_starts, rows, side="right") - 1
        return np.minimum(rows - self.row_starts[user] + 1, self.max_history_items)

    def batch(
        self, rows: Int64[np.ndarray, " example"], *, seed: int, epoch: int
    ) -> GeneratorBatch:
        """Return some rows; the same arguments give the same batch."""
        user = np.searchsorted(self.row_starts, rows, side="right") - 1
        first = np.asarray(self.interactions.user_starts[user])
        end = np.asarray(self.interactions.user_starts[user + 1])
        place = first + rows - self.row_starts[user] + 1  # of the next interaction
        ahead = np.minimum(end - place, self.target_window)
        chance = uniform(rows, key=key_of(seed, epoch, "target"))
        items = self.interactions.item_index
        target = np.asarray(items[place + (chance * ahead).astype(np.int64)])
        history = pad_items(
            [
                self._kept(
                    items[max(begin, stop - self.max_history_items) : stop], row, seed, epoch
                )
                for begin, stop, row in zip(
                    first.tolist(), place.tolist(), rows.tolist(), strict=True
                )
            ]
        )
        return GeneratorBatch(
            task="recommendation",
            texts=[],
            text_rows=torch.full((len(rows),), -1),
            indexed_item=torch.full((len(rows),), -1),
            history=history,
            target=torch.from_numpy(target),
            excluded=torch.full((len(rows), 0), -1),
            request_rows=torch.from_numpy(rows),
        )

    def _kept(
        self, history: Int64[np.ndarray, " item"], row: int, seed: int, epoch: int
    ) -> Int64[np.ndarray, " item"]:
        if self.history_dropout == 0:
            return history
        chance = uniform(np.arange(len(history)), key=key_of(seed, epoch, row, "history"))
        kept = history[chance >= self.history_dropout]
        return kept if len(kept) else history[-1:]


@dataclass(frozen=True)
class GeneratorBatches(Dataset[GeneratorBatch]):
    """Batch by number, for one rank.

    Attributes:
        schedule: Which rows.
        rank: Of this process.
        search: None when the task is off.
        recommendation: None when the task is off.
    """

    schedule: BucketedSchedule
    rank: int
    search: SearchExamples | None
    recommendation: RecommendationExamples | None

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, number: BatchNumber) -> GeneratorBatch:
        task, rows, epoch = self.schedule.batch(number.step, epoch=number.epoch, rank=self.rank)
        examples = self.search if task == "search" else self.recommendation
        if examples is None:
            raise AssertionError(f"the schedule holds {task}, which is switched off")
        return examples.batch(rows, seed=self.schedule.seed, epoch=epoch)
