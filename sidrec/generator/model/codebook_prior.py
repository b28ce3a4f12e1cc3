"""What a request's own vector expects of every item, before T5 has said anything."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sidrec.generator.model.prefix_prior import EVEN_SHARE, PrefixMass, PrefixTree
from sidrec.types import TASKS, Task

_NO_WEIGHT = -1e9  # finite: a history of padding alone must not give NaN gradients


def code_means(
    codes: Int[Tensor, "item level"],
    item_vectors: Float[Tensor, "item dim"],
    codebook_sizes: tuple[int, ...],
) -> list[Float[Tensor, "_ dim"]]:
    """Return what each code stands for: the mean of what its items have left after earlier levels.

    For RQ-KMeans these are its centroids, up to the mean of all items and items that a collision
    policy moved; for any other way of making codes they are the best additive codebooks of this
    greedy form. Codes without items are 0.
    """
    residual = item_vectors.float() - item_vectors.float().mean(dim=0)
    means = []
    for level, size in enumerate(codebook_sizes):
        column = codes[:, level].long()
        counts = torch.bincount(column, minlength=size).clamp(min=1)
        sums = residual.new_zeros(size, residual.shape[1]).index_add_(0, column, residual)
        means.append(sums / counts[:, None])
        residual = residual - means[-1][column]
    return means


class CodebookPrior(nn.Module):
    """How much a request expects of every item, from its own vector and the items' codes.

    A dense retriever scores item ``x`` by ``<v, x> / temperature``, and ``x`` is about the sum of
    its codes' means: the softmax of these scores over the catalogue is the mass with which
    ``beams.over_children`` weighs the codes. A generator then starts where dense retrieval over
    the decoded Semantic IDs stands, and T5 learns the rest. The request's vector is the query's
    embedding, or a mean of the history's item embeddings with learned weights by how long ago an
    item was.

    Args:
        means: Of each code, per level, see ``code_means``.
        codes: Semantic ID of every item, in the order of the trie's positions.
        scale: Start of the factor of each task and level: 1 / temperature of the bi-encoder.
        max_history_items: Most recent items that have a weight.
        half_life_items: Start of the weights: halved every so many items.

    Source:
        None; the additive score is that of product and residual quantization search (Jegou et
        al. 2011, https://doi.org/10.1109/TPAMI.2010.57), with the request left unquantized.
    """

    codes: Tensor

    def __init__(
        self,
        means: list[Float[Tensor, "_ dim"]],
        codes: Int[Tensor, "item level"],
        *,
        scale: float,
        max_history_items: int,
        half_life_items: float,
    ) -> None:
        super().__init__()
        self.num_levels = len(means)
        self._tree: PrefixTree | None = None
        for level, rows in enumerate(means):
            self.register_buffer(f"means_{level}", rows.clone(), persistent=False)
        self.register_buffer("codes", codes.long(), persistent=False)
        self.scale = nn.Parameter(torch.full((len(TASKS), len(means)), scale))
        ago = torch.arange(max_history_items, dtype=torch.float32)
        self.recency_logits = nn.Parameter(-ago * (0.6931 / half_life_items))

    def history_vector(
        self,
        vectors: Float[Tensor, "request item dim"],
        ago: Int[Tensor, "request item"],
        real: Bool[Tensor, "request item"],
    ) -> Float[Tensor, "request dim"]:
        """Return the weighted mean of the history's item vectors, L2-normalized.

        Args:
            vectors: Of the history's items.
            ago: 0 for the most recent item, 1 for the one before …
            real: False on padding.
        """
        logits = self.recency_logits[ago].float().masked_fill(~real, _NO_WEIGHT)
        weights = torch.softmax(logits, dim=1) * real  # an empty history has no weight at all
        with torch.autocast(vectors.device.type, enabled=False):
            mean = (weights[..., None] * vectors.float()).sum(dim=1)
        return F.normalize(mean, dim=-1)

    def forward(
        self, vector: Float[Tensor, "request dim"], *, task: Task
    ) -> Float[Tensor, "request bound"]:
        """Return the mass before each position of the trie, from 0 to 1, in float64.

        A thousandth of it is shared out evenly, so that no item is ever ruled out.
        """
        scores = vector.new_zeros((len(vector), len(self.codes)), dtype=torch.float32)
        with torch.autocast(vector.device.type, enabled=False):
            for level, logits in enumerate(self._logits(vector, task)):
                scores = scores + logits[:, self.codes[:, level]]  # [request, item]
            mass = torch.softmax(scores.double(), dim=1)
            mass = mass * (1 - EVEN_SHARE) + EVEN_SHARE / mass.shape[1]
            return F.pad(mass.cumsum(dim=1), (1, 0))

    @torch.no_grad()
    def masses(self, vector: Float[Tensor, "request dim"], *, task: Task) -> PrefixMass:
        """Return what ``forward`` does, for any prefix and at a fraction of the cost.

        For answering: there is no gradient, and small differences from ``forward`` are rounding.
        """
        if self._tree is None or self._tree.prefix_at[0].device != self.codes.device:
            self._tree = PrefixTree.of(self.codes)
        with torch.autocast(vector.device.type, enabled=False):
            return PrefixMass(self._tree, self._logits(vector, task))

    def _logits(
        self, vector: Float[Tensor, "request dim"], task: Task
    ) -> list[Float[Tensor, "request _"]]:
        """Return the score of every code, per level."""
        scale = self.scale[TASKS.index(task)]
        means = [self.get_buffer(f"means_{level}") for level in range(self.num_levels)]
        return [scale[level] * (vector.float() @ rows.T) for level, rows in enumerate(means)]
