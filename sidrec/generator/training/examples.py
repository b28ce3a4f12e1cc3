"""Training examples of both tasks as virtual rows, computed on demand from running counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.utils.data import Dataset

from sidrec.corpus.store import Interactions
from sidrec.errors import ConfigError
from sidrec.generator.decoding.item_filters import pad_items
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.training.bucketed_schedule import BucketedSchedule
from sidrec.generator.training.pseudo_queries import PseudoQueries
from sidrec.pairs.query_item import QueryItemPairs
from sidrec.training.counter_rng import key_of, uniform
from sidrec.training.numbered_batches import BatchNumber


@dataclass(frozen=True)
class SearchExamples:
    """Search examples: train queries, then indexing rows (item text -> its own Semantic ID).

    The text of an indexing row is the item's whole text, or words that ``words`` draws from it.

    Attributes:
        pairs: Train queries and their items.
        queries: Text of each train query.
        item_texts: Text of each item; row = item_index.
        indexed_items: item_index of the items that indexing rows may hold.
        num_indexing: Number of indexing rows; each turn continues with the next items.
        words: Draws the texts of indexing rows; None gives whole texts.
    """

    pairs: QueryItemPairs
    queries: Sequence[str]
    item_texts: Sequence[str]
    indexed_items: Int64[np.ndarray, " item"]
    num_indexing: int
    words: PseudoQueries | None = None

    def __len__(self) -> int:
        return len(self.pairs) + self.num_indexing

    def length_of(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Return the lengths of rows in characters; -1 for indexing rows, which stay together."""
        lengths: Int64[np.ndarray, " row"] = self._lengths[np.minimum(rows, len(self.pairs))]
        return lengths

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " row"]:
        return np.array([*map(len, self.queries), -1], dtype=np.int64)

    def batch(self, rows: Int64[np.ndarray, " example"], *, seed: int, turn: int) -> GeneratorBatch:
        """Return a batch of rows; the same arguments give the same batch.

        Args:
            rows: In ``[0, len(self))``.
            seed: Seed of the draws of an item for each query, and of words.
            turn: Number of completed passes over all rows.
        """
        num_queries = len(self.pairs)
        is_query = rows < num_queries
        walk = rows - num_queries + turn * self.num_indexing
        indexed = np.where(is_query, -1, self.indexed_items[walk % len(self.indexed_items)])
        query = np.where(is_query, rows, -1)
        target = indexed.copy()
        target[is_query] = self.pairs.draw(rows[is_query], seed=seed, epoch=turn).right_item
        none = torch.full((len(rows), 0), -1)
        item_texts = iter(self._item_texts(indexed[~is_query], walk[~is_query], seed))
        return GeneratorBatch(
            task="search",
            texts=[
                self.queries[number] if number >= 0 else next(item_texts)
                for number in query.tolist()
            ],
            text_rows=torch.from_numpy(query),
            indexed_item=torch.from_numpy(indexed),
            history=none,
            target=torch.from_numpy(target),
            excluded=none,
            user_index=torch.full((len(rows),), -1),
            request_rows=torch.tensor(rows),
        )

    def _item_texts(
        self, items: Int64[np.ndarray, " row"], walk: Int64[np.ndarray, " row"], seed: int
    ) -> list[str]:
        if self.words is None:
            return [self.item_texts[item] for item in items.tolist()]
        return self.words.draw(items, walk, seed=key_of(seed, "words"))


@dataclass(frozen=True)
class RecommendationExamples:
    """Recommendation examples: each train interaction with a predecessor (history -> next item).

    Where interactions have weights, a turn draws each as often as its share of the weights says,
    rounded down or up (systematic resampling), in place of once.

    Attributes:
        interactions: Train interactions only.
        row_starts: Rows of user ``u`` are ``[row_starts[u], row_starts[u + 1])``.
        max_history_items: Number of most recent items to read.
        target_window: Number of next interactions from which the target is drawn; 1: the next.
        history_dropout: Probability that an item of a history is left out.
        exclude_history: Whether a user's items before the target are excluded, as in decoding;
            a target among them stays allowed.
    """

    interactions: Interactions
    row_starts: Int64[np.ndarray, " bound"]
    max_history_items: int
    target_window: int
    history_dropout: float
    exclude_history: bool = False

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        *,
        max_history_items: int,
        target_window: int,
        history_dropout: float,
        targets_per_user: int | None = None,
        exclude_history: bool = False,
    ) -> "RecommendationExamples":
        """Count the rows of each train history.

        Args:
            interactions: Train interactions only.
            max_history_items: See the attribute.
            target_window: See the attribute.
            history_dropout: See the attribute.
            targets_per_user: Number of a user's last interactions to use as targets, so that
                users with long histories do not outweigh the others; None takes all.
            exclude_history: See the attribute.

        Raises:
            ConfigError: If a setting is out of range.
        """
        if max_history_items < 1 or target_window < 1 or not 0 <= history_dropout < 1:
            raise ConfigError(
                "data.histories: max_history_items and target_window must be 1 or more and "
                "history_dropout in [0, 1), got "
                f"{max_history_items}, {target_window}, {history_dropout}."
            )
        rows = np.maximum(np.diff(interactions.user_starts) - 1, 0)
        if targets_per_user is not None:
            if targets_per_user < 1:
                raise ConfigError(
                    f"data.histories.targets_per_user must be 1 or more, got {targets_per_user}."
                )
            rows = np.minimum(rows, targets_per_user)
        row_starts = np.concatenate([[0], np.cumsum(rows)])
        return cls(
            interactions,
            row_starts,
            max_history_items,
            target_window,
            history_dropout,
            exclude_history,
        )

    def __len__(self) -> int:
        return int(self.row_starts[-1])

    def length_of(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Return the number of history items of rows, before dropout.

        With weights it is that of a turn in the middle, which is nearly that of any other.
        """
        return self._lengths(self._drawn(rows, 0.5))

    def _drawn(self, rows: Int64[np.ndarray, " row"], offset: float) -> Int64[np.ndarray, " row"]:
        """Return the interactions that rows stand for: themselves without weights.

        Args:
            rows: In ``[0, len(self))``.
            offset: Place of every row within its equal share of the weights, in [0, 1).
        """
        if self._weight_sums is None:
            return rows
        goal = (rows + offset) * (self._weight_sums[-1] / len(self))
        drawn = np.searchsorted(self._weight_sums, goal, side="right")
        inside: Int64[np.ndarray, " row"] = np.minimum(drawn, len(self) - 1)  # of rounding
        return inside

    @cached_property
    def _weight_sums(self) -> Float64[np.ndarray, " row"] | None:
        weight = self.interactions.weight
        if weight is None:
            return None
        rows = np.arange(len(self), dtype=np.int64)
        return np.cumsum(weight[self._place(rows, self._user(rows))], dtype=np.float64)

    def _lengths(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        user = self._user(rows)
        before = self._place(rows, user) - self.interactions.user_starts[user]
        lengths: Int64[np.ndarray, " row"] = np.minimum(before, self.max_history_items)
        return lengths

    def batch(self, rows: Int64[np.ndarray, " example"], *, seed: int, turn: int) -> GeneratorBatch:
        """Return a batch of rows; the same arguments give the same batch.

        Args:
            rows: In ``[0, len(self))``.
            seed: Seed of targets and dropped items.
            turn: Number of completed passes over all rows.
        """
        if self._weight_sums is not None:
            offset = uniform(np.zeros(1, np.int64), key=key_of(seed, turn, "weights"))
            rows = self._drawn(rows, float(offset[0]))
        user = self._user(rows)
        starts, items = self.interactions.user_starts, self.interactions.item_index
        place = self._place(rows, user)
        ahead = np.minimum(starts[user + 1] - place, self.target_window)
        chance = uniform(rows, key=key_of(seed, turn, "target"))
        target = items[place + (chance * ahead).astype(np.int64)]
        return GeneratorBatch(
            task="recommendation",
            texts=[],
            text_rows=torch.full((len(rows),), -1),
            indexed_item=torch.full((len(rows),), -1),
            history=torch.from_numpy(self._histories(rows, place, seed=seed, turn=turn)),
            target=torch.tensor(target),
            excluded=self._excluded(user, place, target),
            user_index=torch.tensor(user),
            request_rows=torch.tensor(rows),
        )

    def _excluded(
        self,
        user: Int64[np.ndarray, " example"],
        place: Int64[np.ndarray, " example"],
        target: Int64[np.ndarray, " example"],
    ) -> Int64[Tensor, "example excluded"]:
        if not self.exclude_history:
            return torch.full((len(user), 0), -1)
        starts, items = self.interactions.user_starts, self.interactions.item_index
        before = [items[starts[u] : end] for u, end in zip(user, place, strict=True)]
        return pad_items([row[row != own] for row, own in zip(before, target, strict=True)])

    def _histories(
        self,
        rows: Int64[np.ndarray, " example"],
        ends: Int64[np.ndarray, " example"],
        *,
        seed: int,
        turn: int,
    ) -> Int64[np.ndarray, "example item"]:
        """Return the items before ``ends``, oldest first, padded with -1 at the end."""
        lengths = self._lengths(rows)
        ago = np.arange(lengths.max(initial=0), 0, -1)[None, :]  # [1, item], oldest first
        kept = self._kept(rows, ago, seed=seed, turn=turn) & (ago <= lengths[:, None])
        order = np.argsort(~kept, axis=1, kind="stable")[:, : kept.sum(axis=1).max(initial=0)]
        kept, place = np.take_along_axis(kept, order, 1), (ends[:, None] - ago)
        place = np.where(kept, np.take_along_axis(place, order, 1), 0)
        return np.where(kept, self.interactions.item_index[place], -1)

    def _kept(
        self,
        rows: Int64[np.ndarray, " example"],
        ago: Int64[np.ndarray, "1 item"],
        *,
        seed: int,
        turn: int,
    ) -> Bool[np.ndarray, "example item"]:
        """Draw the items to keep: at least the most recent one."""
        counters = rows[:, None] * (self.max_history_items + 1) + ago
        chance = uniform(counters.reshape(-1), key=key_of(seed, turn, "history"))
        kept = chance.reshape(counters.shape) >= self.history_dropout
        real = ago <= self._lengths(rows)[:, None]
        kept[:, -1:] |= ~(kept & real).any(axis=1, keepdims=True)
        return kept

    def _place(
        self, rows: Int64[np.ndarray, " row"], user: Int64[np.ndarray, " row"]
    ) -> Int64[np.ndarray, " row"]:
        """Return the position of each row's next interaction."""
        ends = self.interactions.user_starts[user + 1]
        place: Int64[np.ndarray, " row"] = ends - (self.row_starts[user + 1] - rows)
        return place

    def _user(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        return np.searchsorted(self.row_starts, rows, side="right") - 1


@dataclass(frozen=True)
class GeneratorBatches(Dataset[GeneratorBatch]):
    """Training batches of one rank by number.

    Attributes:
        schedule: Rows of each batch.
        rank: Rank of this process.
        search: Search examples; None when the task is off.
        recommendation: Recommendation examples; None when the task is off.
    """

    schedule: BucketedSchedule
    rank: int
    search: SearchExamples | None
    recommendation: RecommendationExamples | None

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, number: BatchNumber) -> GeneratorBatch:
        task, rows, turn = self.schedule.batch(number.step, epoch=number.epoch, rank=self.rank)
        examples = self.search if task == "search" else self.recommendation
        if examples is None:
            raise AssertionError(f"the schedule holds {task}, which is switched off")
        return examples.batch(rows, seed=self.schedule.seed, turn=turn)
