"""Scorer interface, and the popularity scorer."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.errors import DataError


class ScorerQuery(NamedTuple):
    """Input of scorers: a batch of requests of one task.

    Attributes:
        texts: Queries; empty for recommendation.
        vectors: Query embeddings; None where no bi-encoder reads the queries, and for
            recommendation.
        history: item_index, oldest first; -1 pads at the end.
        user_index: User of a training example, for scorers cross-fitted over users; -1 outside
            training.
    """

    texts: list[str]
    vectors: Float[Tensor, "request dim"] | None
    history: Int[Tensor, "request item"]
    user_index: Int[Tensor, " request"]


class Scorer(nn.Module, ABC):
    """Scorer of every item of the catalogue for a request, in any unit.

    A scorer has no trainable weights. Its tensors are buffers outside the state dict; a
    checkpoint stores ``state``, which rebuilds it without a corpus.
    """

    initial_weight: ClassVar[float]
    """Weight in the prior before training, in nats per unit of the score."""

    @abstractmethod
    def forward(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        """Return float32 scores by item_index."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the arguments of the constructor as tensors, numbers and strings."""


class PopularityScorer(Scorer):
    """Scorer ``log(1 + train interactions of the item)``.

    Args:
        popularity: Train interactions of each item.

    Raises:
        DataError: If there is no train interaction.
    """

    initial_weight = 0.5
    log_counts: Tensor

    def __init__(self, popularity: Int[Tensor, " item"]) -> None:
        super().__init__()
        if not int(popularity.sum()):
            raise DataError(
                "Scorer 'popularity' needs train interactions and the corpus has none; leave it "
                "out of model.prior."
            )
        self.register_buffer("log_counts", popularity.float().log1p(), persistent=False)
        self._popularity = popularity

    def forward(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        """Return the same scores for every request."""
        return self.log_counts.expand(len(query.history), -1)

    def state(self) -> dict[str, Any]:
        """Return the numbers of train interactions."""
        return {"popularity": self._popularity.cpu()}


def recency_weights(
    history: Int[Tensor, "request item"], *, half_life_items: float
) -> Float[Tensor, "request item"]:
    """Return recency weights of history items: 1 for the most recent one, halving backwards.

    Args:
        history: item_index, oldest first; -1 pads at the end and has weight 0.
        half_life_items: Number of items over which a weight halves, ``> 0``.

    >>> recency_weights(torch.tensor([[4, 7, -1]]), half_life_items=1.0)
    tensor([[0.5000, 1.0000, 0.0000]])
    """
    real = history >= 0
    place = torch.arange(history.shape[1], device=history.device)
    ago = real.sum(dim=1, keepdim=True) - 1 - place
    return torch.exp2(-ago / half_life_items) * real


def weighted_rows(
    table: Float[Tensor, "item dim"],
    items: Int[Tensor, "request place"],
    weights: Float[Tensor, "request place"],
) -> Float[Tensor, "request dim"]:
    """Return the weighted sum of table rows for each request, without a copy of the rows.

    Costs ``request * item * dim`` multiplications. Sums run in the order of the items, so results
    are the same on every run.
    """
    if not items.shape[1]:
        return table.new_zeros(len(items), table.shape[1])
    return F.embedding_bag(items.clamp(min=0), table, per_sample_weights=weights, mode="sum")
