"""Dense scorer: inner product of the request embedding with each item embedding."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.generator.scorers.scorer import Scorer, ScorerQuery, recency_weights, weighted_rows


class DenseScorer(Scorer):
    """Cosine of the request embedding and every item embedding.

    The bi-encoder embeds a query. The embedding of a history is the recency-weighted mean of its
    item embeddings, L2-normalized.

    Args:
        item_vectors: Bi-encoder embedding of every item, L2-normalized.
        half_life_items: Items of a history over which a weight halves.
    """

    initial_weight = 30.0
    item_vectors: Tensor

    def __init__(self, item_vectors: Float[Tensor, "item dim"], *, half_life_items: float) -> None:
        super().__init__()
        self.half_life_items = half_life_items
        self.register_buffer("item_vectors", item_vectors.float(), persistent=False)

    def forward(self, query: ScorerQuery) -> Float[Tensor, "request item"]:
        """Return cosines.

        Raises:
            ConfigError: If a search request has no embedding.
        """
        vectors = query.vectors
        if query.texts and vectors is None:
            raise ConfigError(
                "Scorer 'dense' needs the bi-encoder's query embeddings; set "
                "model.inputs.text_input to encoder_states or tokens_and_states, or leave 'dense' "
                "out of model.prior.search."
            )
        if vectors is None:
            weights = recency_weights(query.history, half_life_items=self.half_life_items)
            vectors = F.normalize(weighted_rows(self.item_vectors, query.history, weights), dim=1)
        return vectors.float() @ self.item_vectors.T

    def state(self) -> dict[str, Any]:
        """Return the half-life; the item vectors come from the Semantic-ID bundle."""
        return {"half_life_items": self.half_life_items}
