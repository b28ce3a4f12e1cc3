"""Training loop of ENMF, and loading of a trained one from its run directory."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout

from sidrec.corpus.cold_start import cold_start_items
from sidrec.corpus.requests import recommendation_requests
from sidrec.corpus.schema import Split
from sidrec.corpus.store import popularity
from sidrec.encoder.dense_retrieval import own_slice, recall_figures
from sidrec.encoder.enmf.datamodule import UserBatch, UserDataModule, users_of
from sidrec.errors import ConfigError, RunError
from sidrec.figures import harmonic_mean
from sidrec.runs.directory import RunDirectory
from sidrec.settings import PositiveFloat, PositiveInt, Probability
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.stage_module import StageModule

_START_DEVIATION = 0.01


class FactorTower(nn.Module):
    """Factor tower: one vector per user and per item, and a weight per dimension.

    It replaces the text tower of the bi-encoder: ``encode_catalogue`` takes its ``item_vectors``
    and reads no text.

    Args:
        num_users: user_index runs from 0 to num_users - 1.
        num_items: item_index runs from 0 to num_items - 1.
        dim: Length of the vectors.
    """

    def __init__(self, num_users: int, num_items: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.users = nn.Embedding(num_users, dim)
        self.items = nn.Embedding(num_items, dim)
        self.factors = nn.Parameter(torch.full((dim,), _START_DEVIATION))
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=_START_DEVIATION)

    @torch.no_grad()
    def item_vectors(self) -> Float[Tensor, "item dim"]:
        """Return the L2-normalized item vectors on the CPU, as the quantizers use them."""
        return F.normalize(self.items.weight.detach().float(), dim=-1).cpu()

    @torch.no_grad()
    def questions(self, user_index: Int[Tensor, " request"]) -> Float[Tensor, "request dim"]:
        """Return the query vector of each user; its inner products with the items are the scores.

        Args:
            user_index: -1 means a user without train interactions: all scores are 0.
        """
        known = (user_index >= 0)[:, None]
        vectors: Tensor = self.users(user_index.clamp(min=0)) * self.factors
        return vectors * known


def enmf_loss(
    users: Float[Tensor, "user dim"],
    items: Float[Tensor, "item dim"],
    factors: Float[Tensor, " dim"],
    *,
    positive_user: Int[Tensor, " positive"],
    positive_item: Int[Tensor, " positive"],
    negative_weights: Float[Tensor, " item"],
) -> Float[Tensor, ""]:
    """Return the weighted squared error over the scores of all users and items, without sampling.

    The score of user u and item v is ``sum_d factors_d users_ud items_vd``; its target is 1 where u
    consumed v (weight 1) and 0 elsewhere (weight ``negative_weights_v``). The sum over all
    user-item cells splits into one over pairs of dimensions, which costs (users + items) × dim² in
    place of users × items × dim, and one over the positives.

    Args:
        users: User vectors of the batch.
        items: Item vectors of the whole catalogue.
        factors: Weight of each dimension.
        positive_user: Row of ``users`` of each interaction, no interaction twice.
        positive_item: Its item_index.
        negative_weights: Weight of each item where it was not consumed.

    Returns:
        Sum over the users of the batch and all items.

    Source:
        Chen et al. 2020, eq. 8 and 10, https://doi.org/10.1145/3373807. Differs: keeps the
        constant that counts positives, so that the value equals the naive sum.
    """
    by_users = users.T @ users  # [dim, dim]
    by_items = (items * negative_weights[:, None]).T @ items
    everywhere = (torch.outer(factors, factors) * by_users * by_items).sum()
    scores = ((users * factors)[positive_user] * items[positive_item]).sum(dim=1)
    taken_back = negative_weights[positive_item] * scores.square()
    return everywhere + ((1 - scores).square() - taken_back).sum()


def negative_weights_of(
    popularity: Int[Tensor, " item"], *, mean_weight: float, exponent: float
) -> Float[Tensor, " item"]:
    """Return the weight of each item where it was not consumed, larger for popular items.

    Args:
        popularity: Train interactions of each item.
        mean_weight: Mean of the weights.
        exponent: Weights are proportional to popularity to this power; 0 weighs all items alike.

    >>> negative_weights_of(torch.tensor([1, 3]), mean_weight=0.5, exponent=1.0).tolist()
    [0.25, 0.75]

    Source:
        Chen et al. 2020, eq. 4. Differs: set by the mean, in the paper by the sum over the
        catalogue.
    """
    raised = popularity.double().clamp(min=0) ** exponent
    return (mean_weight * raised / raised.mean().clamp(min=1e-12)).float()


KS = (10, 30)


class Enmf(StageModule[UserDataModule]):
    """Efficient neural matrix factorization; its item vectors are the ``rec`` embeddings.

    Args:
        dim: Length of the vectors.
        dropout: Probability that a dimension of a user is hidden in training.
        negative_weight: Mean weight of items not consumed; consumed items weigh 1.
        popularity_exponent: Power of the item's popularity in its weight; 0 weighs all items alike.
        optimizer: AdamW, its schedule, and the losses that it may skip.

    Source:
        Chen et al. 2020, https://doi.org/10.1145/3373807. Differs: AdamW in place of Adagrad.
    """

    stage = "encoder"
    data_class = UserDataModule
    tower: FactorTower

    def __init__(
        self,
        *,
        dim: PositiveInt = 256,
        dropout: Probability = 0.5,
        negative_weight: PositiveFloat = 0.1,
        popularity_exponent: float = 0.0,
        optimizer: OptimizerSettings = OptimizerSettings(
            learning_rate=1e-3, weight_decay=0.0, warmup_fraction=0.0, decay="constant"
        ),
    ) -> None:
        super().__init__(
            optimizer,
            dim=dim,
            dropout=dropout,
            negative_weight=negative_weight,
            popularity_exponent=popularity_exponent,
        )
        if dim < 1 or negative_weight <= 0:
            raise ConfigError(
                f"dim and negative_weight must be positive, got {dim} and {negative_weight}."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}.")
        self.dim, self.dropout = dim, dropout
        self.mean_weight, self.popularity_exponent = negative_weight, popularity_exponent

    def configure_model(self) -> None:
        """Create the vectors and the weights of the corpus, unless they exist."""
        if not hasattr(self, "tower"):
            corpus = self._data().corpus
            self._build(corpus.num_users, corpus.num_items)
            counts = popularity(corpus.train_interactions(), corpus.num_items)
            self.negative_weights.copy_(
                negative_weights_of(
                    counts,
                    mean_weight=self.mean_weight,
                    exponent=self.popularity_exponent,
                )
            )

    def training_step(self, batch: UserBatch, batch_idx: int) -> Tensor:
        """Return the squared error per user of the batch, over the whole catalogue."""
        tower = self.tower
        users = dropout(tower.users(batch.user_index), self.dropout, training=True)
        with torch.autocast(self.device.type, enabled=False):  # squares of small numbers
            loss = enmf_loss(
                users.float(),
                tower.items.weight,
                tower.factors,
                positive_user=batch.positive_user,
                positive_item=batch.positive_item,
                negative_weights=self.negative_weights,
            ) / len(batch.user_index)
        mean = self._mean_loss(loss, batch_idx)
        self.log("train/recommendation/loss", mean, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, split: Split) -> None:
        """Rank the whole catalogue for the validation requests."""
        self._log_recalls("val", split)

    def test_step(self, split: Split) -> None:
        """Rank the whole catalogue for the test requests."""
        self._log_recalls("test", split)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Create vectors of the checkpoint's sizes if none exist."""
        super().on_load_checkpoint(checkpoint)
        if not hasattr(self, "tower"):
            stored = checkpoint["state_dict"]
            self._build(len(stored["tower.users.weight"]), len(stored["tower.items.weight"]))

    def _build(self, num_users: int, num_items: int) -> None:
        self.tower = FactorTower(num_users, num_items, self.dim)
        self.register_buffer("negative_weights", torch.ones(num_items))

    def _log_recalls(self, prefix: str, split: Split) -> None:
        corpus = self._data().corpus
        requests = own_slice(recommendation_requests(corpus, split))
        questions = self.tower.questions(users_of(corpus, requests).to(self.device))
        items, exclude = self.tower.items.weight.detach(), corpus.exclude_history
        recalls = recall_figures(
            "recommendation",
            questions,
            items,
            requests,
            ks=KS,
            exclude_history=exclude,
            cold=cold_start_items(corpus) if split == "test" else None,
        )
        at_best = [v for key, v in recalls.items() if key.endswith(f"@{max(KS)}")]
        recalls["recall_harmonic_mean"] = harmonic_mean(at_best)  # over its one task
        self.log_dict({f"{prefix}/{key}": value for key, value in recalls.items()}, batch_size=1)


def load_enmf(run: RunDirectory) -> Enmf:
    """Return the best ENMF of a finished run, on the CPU, in evaluation mode.

    Raises:
        RunError: If the run has not finished, or is not an ENMF run.
    """
    file = run.finished_checkpoint()
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if "tower.users.weight" not in checkpoint["state_dict"]:
        raise RunError(
            f"{file} is not an ENMF checkpoint; give the folder of a run of configs/enmf.yaml."
        )
    return Enmf.from_checkpoint(checkpoint)
