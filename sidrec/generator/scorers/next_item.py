"""Next-item scorer: ridge regression from a recency-weighted history to the next item."""

from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int64
from scipy.sparse.linalg import svds
from torch import Tensor

from sidrec.console import say
from sidrec.errors import DataError
from sidrec.generator.scorers.prior_settings import NextItemSettings
from sidrec.generator.scorers.scorer import Scorer, ScorerQuery, recency_weights, weighted_rows

if TYPE_CHECKING:  # a retriever needs no corpus, and its tables take a second to import
    from sidrec.corpus.store import Interactions


class NextItemExamples(NamedTuple):
    """Training examples of the next-item scorer: each train interaction with a predecessor.

    Attributes:
        histories: Recency-weighted items before each interaction, examples by items.
        targets: item_index of the next item.
        user_index: User of the interaction.
    """

    histories: sp.csr_array
    targets: Int64[np.ndarray, " example"]
    user_index: Int64[np.ndarray, " example"]


class Linear(NamedTuple):
    """Linear map from weighted histories to item scores, with one or two factors.

    Attributes:
        rows: One row per history item; its width is the number of items, or the rank.
        head: Second factor, from the rank to all items; None without one.
    """

    rows: Float[Tensor, "item width"]
    head: Float[Tensor, "rank item"] | None

    def scores(
        self, history: Tensor, *, half_life_items: float, factor: Tensor | float = 1.0
    ) -> Float[Tensor, "request item"]:
        """Return float32 scores of all items for each history (-1 pads at the end).

        Args:
            history: item_index, oldest first.
            half_life_items: Items over which a weight halves.
            factor: Of all weights of a history.
        """
        weights = recency_weights(history, half_life_items=half_life_items) * factor
        found = weighted_rows(self.rows, history, weights)
        return found if self.head is None else found @ self.head


class NextItemScorer(Scorer):
    """Logarithm of the linear estimate of the probability that an item follows a history.

    The estimate ``p`` of ``n`` items scores ``ln(1 + n * max(p, 0))``: 0 where the history gives
    no evidence for an item, and the logarithm of the gain over chance where it gives much.

    Training examples use a map fitted without their user (cross-fitting), because the map of all
    users was fitted on their targets; decoding uses the map of all users. One request costs
    ``history * width`` multiplications, and ``rank * item`` more with a low-rank head.

    Args:
        everyone: Map fitted on all users, to the estimates in multiples of chance: ``n * p``.
        half_life_items: Number of history items over which a weight halves.
        folds: Map number ``f`` was fitted without the users whose index is ``f`` modulo the
            number of folds; empty outside training.
    """

    initial_weight = 2.0

    def __init__(
        self, everyone: Linear, *, half_life_items: float, folds: tuple[Linear, ...] = ()
    ) -> None:
        super().__init__()
        self.half_life_items, self._num_folds = half_life_items, len(folds)
        for number, linear in enumerate((*folds, everyone)):
            self.register_buffer(f"rows_{number}", linear.rows, persistent=False)
            self.register_buffer(f"head_{number}", linear.head, persistent=False)

    @classmethod
    def of_interactions(
        cls, train: "Interactions", num_items: int, settings: NextItemSettings, *, num_folds: int
    ) -> "NextItemScorer":
        """Fit the map of all users, and one map per fold without that fold's users.

        Args:
            train: Train interactions only.
            num_items: Number of items in the catalogue.
            settings: Settings of the regression.
            num_folds: Number of folds of the cross-fit; 0 outside training.

        Raises:
            DataError: If no user has two train interactions.
        """
        examples = next_item_examples(
            train,
            num_items,
            half_life_items=settings.half_life_items,
            max_history_items=settings.max_history_items,
        )
        if not len(examples.targets):
            raise DataError(
                "Scorer 'next_item' needs users with two train interactions and the corpus has "
                "none; leave it out of model.prior.recommendation."
            )
        if num_items > settings.max_dense_items:
            say(
                f"next_item: {num_items:,} items are above prior.next_item.max_dense_items "
                f"({settings.max_dense_items:,}); a map of rank {settings.rank} replaces "
                "the dense one."
            )
        fold = examples.user_index % max(num_folds, 1)
        kept = [fold != number for number in range(num_folds)] if num_folds > 1 else []

        def fit(examples: NextItemExamples) -> Linear:
            rows, head = fit_next_item(examples, settings)
            return Linear(num_items * rows, head)

        return cls(
            fit(examples),
            half_life_items=settings.half_life_items,
            folds=tuple(fit(_subset(examples, rows)) for rows in kept),
        )

    @property
    def everyone(self) -> Linear:
        """Map fitted on all users."""
        return self._map(self._num_folds)

    def forward(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        """Return scores; for training examples those of the map fitted without their user."""
        return self._over_chance(query).clamp(min=0).log1p()

    def _over_chance(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        on_cpu = query.history.device.type == "cpu"
        if not self._num_folds or (on_cpu and not bool((query.user_index >= 0).any())):
            return self._map(self._num_folds).scores(
                query.history, half_life_items=self.half_life_items
            )
        number = torch.where(
            query.user_index >= 0, query.user_index % self._num_folds, self._num_folds
        )
        if not on_cpu:  # every map scores every request, so that the host need not wait
            own = torch.nn.functional.one_hot(number, self._num_folds + 1).float()
            found = (
                self._map(fold).scores(
                    query.history, half_life_items=self.half_life_items, factor=own[:, fold, None]
                )
                for fold in range(self._num_folds + 1)
            )
            return reduce(torch.add, found)
        parts, rows = [], []
        for fold in range(self._num_folds + 1):
            rows.append((number == fold).nonzero().flatten())
            parts.append(
                self._map(fold).scores(
                    query.history[rows[-1]], half_life_items=self.half_life_items
                )
            )
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]

    def state(self) -> dict[str, Any]:
        """Return the map of all users in half precision."""
        rows, head = self.everyone
        return {
            "rows": rows.half().cpu(),
            "head": None if head is None else head.half().cpu(),
            "half_life_items": self.half_life_items,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "NextItemScorer":
        """Build a scorer for decoding from the result of ``state``."""
        head = state["head"]
        everyone = Linear(state["rows"].float(), None if head is None else head.float())
        return cls(everyone, half_life_items=state["half_life_items"])

    def _map(self, number: int) -> Linear:
        return Linear(getattr(self, f"rows_{number}"), getattr(self, f"head_{number}"))


def next_item_examples(
    train: "Interactions", num_items: int, *, half_life_items: float, max_history_items: int
) -> NextItemExamples:
    """Return weighted histories with their next items.

    Args:
        train: Train interactions only.
        num_items: Number of items in the catalogue.
        half_life_items: Number of history items over which a weight halves.
        max_history_items: Number of most recent items to use.
    """
    starts, items = train.user_starts[:-1], train.item_index
    first = np.repeat(starts, np.diff(train.user_starts))  # first interaction of the same user
    ends = np.flatnonzero(np.arange(len(items)) > first)
    rows, columns, weights = [], [], []
    for ago in range(max_history_items):
        place = ends - 1 - ago
        real = np.flatnonzero(place >= first[ends])
        if not len(real):
            break
        rows.append(real)
        columns.append(items[place[real]])
        weights.append(np.full(len(real), 2.0 ** (-ago / half_life_items)))
    none = np.empty(0, np.int64)
    cells = (np.concatenate([none, *rows]), np.concatenate([none, *columns]))
    values = np.concatenate([np.empty(0), *weights])
    histories = sp.csr_array((values, cells), shape=(len(ends), num_items), dtype=np.float64)
    return NextItemExamples(histories, items[ends].copy(), train.user_index[ends].copy())


def fit_next_item(examples: NextItemExamples, settings: NextItemSettings) -> Linear:
    """Solve the ridge regression of one-hot next items on weighted histories in closed form.

    With histories ``X`` and targets ``Y``, the map is ``(X'X + ridge I)^-1 X'Y``: ``2 n^3``
    operations and ``24 n^2`` bytes for ``n`` items. Above ``settings.max_dense_items`` the map is
    restricted to the ``rank`` largest singular directions of ``X``; neither ``X'X`` nor the full
    map is formed.
    """
    x, num_items = examples.histories, examples.histories.shape[1]
    shape = (len(examples.targets), num_items)
    cells = (np.arange(shape[0]), examples.targets)
    followed = x.T @ sp.csr_array((np.ones(shape[0]), cells), shape=shape)  # [item, item], sparse
    if num_items <= settings.max_dense_items:
        gram = (x.T @ x).toarray()
        gram[np.diag_indices(num_items)] += settings.ridge
        solved = scipy.linalg.solve(gram, followed.toarray(), assume_a="pos", overwrite_b=True)
        return Linear(torch.tensor(solved, dtype=torch.float32), None)
    rank = min(settings.rank, min(x.shape) - 1)
    _, sizes, directions = svds(x, k=rank, v0=np.ones(min(x.shape)))
    rows = directions.T / (sizes**2 + settings.ridge)
    return Linear(
        torch.tensor(rows, dtype=torch.float32),
        torch.tensor(directions @ followed, dtype=torch.float32),
    )


def _subset(examples: NextItemExamples, kept: np.ndarray) -> NextItemExamples:
    return NextItemExamples(
        examples.histories[kept], examples.targets[kept], examples.user_index[kept]
    )
