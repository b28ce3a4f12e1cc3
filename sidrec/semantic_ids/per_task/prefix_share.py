"""Prefix-share IDs, whose first code both tasks share: one encoder, two decoders."""

from dataclasses import dataclass
from typing import NamedTuple

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sidrec.kernels.nearest import nearest_codes
from sidrec.semantic_ids.kmeans.lloyd import cluster
from sidrec.semantic_ids.learned.codebooks import perceptron
from sidrec.semantic_ids.learned.datamodule import VectorBatch, VectorDataModule
from sidrec.semantic_ids.learned.module import train_alone
from sidrec.semantic_ids.quantizers.base import refuse_few_items
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.types import TASKS, Task

_INIT_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class PrefixShareSettings:
    """Settings of prefix-share IDs.

    Attributes:
        shared_codes: Size of the codebook that both tasks use first.
        task_codes: Size of each task's own codebook.
        latent_dim: Width of a latent vector.
        hidden_dim: Width of the hidden layers.
        num_steps: Steps without codebooks, and again with them.
        batch_size: Items per step; at most the catalogue.
        learning_rate: Learning rate of AdamW.
        commitment_weight: Factor of the loss that pulls latent vectors to their codes.
        seed: Seed of weights, batches and initial codes.
    """

    shared_codes: int
    task_codes: int
    latent_dim: int
    hidden_dim: int
    num_steps: int
    batch_size: int
    learning_rate: float
    commitment_weight: float
    seed: int


class PrefixShare(NamedTuple):
    """Result of the prefix-share training.

    Attributes:
        latents: Vectors that the codebooks quantize; row = item_index.
        quantizers: Quantizer of each task over the latents: shared codebook, then its own.
        errors: Squared reconstruction error over the variance of the vectors, per task.
    """

    latents: Float[Tensor, "item latent"]
    quantizers: dict[Task, FittedRqKMeans]
    errors: dict[Task, float]


class PrefixShareModule(L.LightningModule):
    """Encoder of both embeddings of an item, a decoder for each, and the codebooks.

    Args:
        vectors: Both embeddings of each item, side by side, search first.
        search_dim: Width of the search embedding.
        settings: Settings of the model and its training.

    Source:
        Penha et al. 2025 (arXiv 2508.10478), "Prefix-share". Its architecture is not stated:
        here two layers each, and the task's code quantizes the residual of the shared one.
    """

    needs_pairs = False
    fingerprint = ""

    def __init__(
        self, vectors: Float[Tensor, "item both"], search_dim: int, settings: PrefixShareSettings
    ) -> None:
        super().__init__()
        self.vectors, self.options, self.quantizes = vectors, settings, False
        self.dims: dict[Task, int] = {
            "search": search_dim,
            "recommendation": vectors.shape[1] - search_dim,
        }

    def configure_model(self) -> None:
        """Build the networks and empty codebooks."""
        if hasattr(self, "encoder"):
            return
        hidden, latent = self.options.hidden_dim, self.options.latent_dim
        self.encoder = perceptron((self.vectors.shape[1], hidden, latent))
        self.decoders = nn.ModuleDict(
            {task: perceptron((latent, hidden, dim)) for task, dim in self.dims.items()}
        )
        self.shared = nn.Parameter(torch.zeros(self.options.shared_codes, latent))
        self.own = nn.ParameterDict(
            {task: torch.zeros(self.options.task_codes, latent) for task in self.dims}
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW without weight decay, at a constant rate."""
        rate = self.options.learning_rate
        return torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.0)

    def training_step(self, batch: VectorBatch) -> Tensor:
        """Return the error of both reconstructions, plus that of the codes once they exist."""
        latents = self.encoder(batch.vectors)
        total = latents.new_zeros(())
        for task, target in self.split(batch.vectors).items():
            decoded = latents
            if self.quantizes:
                coded = self._decoded(latents, task)
                total = total + (coded - latents.detach()).square().mean()
                pull = (latents - coded.detach()).square().mean()
                total = total + self.options.commitment_weight * pull
                decoded = latents + (coded - latents).detach()  # straight-through gradient
            total = total + (self.decoders[task](decoded) - target).square().mean()
        error: Tensor = total
        return error

    @torch.no_grad()
    def initialize_codebooks(self, seed: int) -> None:
        """Cluster the latents into shared codes, and their residuals into each task's codes."""
        generator = torch.Generator().manual_seed(seed)

        def centroids(rows: Tensor, num_codes: int) -> Tensor:
            initial = rows[torch.randperm(len(rows), generator=generator)[:num_codes]]
            return cluster(rows, initial, num_iterations=_INIT_ITERATIONS, tolerance=0.0)

        latents = self.encoder(self.vectors)
        self.shared.copy_(centroids(latents, len(self.shared)))
        residual = latents - self.shared[nearest_codes(latents, self.shared)]
        for codebook in self.own.values():
            codebook.copy_(centroids(residual, len(codebook)))

    def quantizer(self, task: Task) -> FittedRqKMeans:
        """Return the fixed codebooks of a task, over latents."""
        codebooks = (self.shared.detach().clone(), self.own[task].detach().clone())
        lengths = (torch.ones(1), torch.ones(len(codebooks[0])))
        return FittedRqKMeans(codebooks, lengths, normalized=False)

    def split(self, both: Float[Tensor, "row both"]) -> dict[Task, Tensor]:
        """Split joined vectors into the columns of each task."""
        return dict(zip(self.dims, torch.split(both, list(self.dims.values()), dim=1), strict=True))

    def _decoded(self, latents: Tensor, task: Task) -> Float[Tensor, "item latent"]:
        own = self.own[task]
        first = nearest_codes(latents.detach(), self.shared.detach())
        residual = latents.detach() - self.shared.detach()[first]
        second = nearest_codes(residual, own.detach())
        decoded: Tensor = self.shared[first] + own[second]
        return decoded


def fit_prefix_share(
    search: Float[Tensor, "item dim"],
    recommendation: Float[Tensor, "item other"],
    settings: PrefixShareSettings,
) -> PrefixShare:
    """Train encoder, decoders and codebooks on the vectors of one catalogue, on this rank.

    The function first trains the autoencoder alone, because codebooks initialized on an untrained
    encoder collapse. Then k-means of the latents initializes the codebooks, and all parts train
    together.

    Raises:
        ConfigError: If there are fewer items than codes.
    """
    refuse_few_items(len(search), (settings.shared_codes, settings.task_codes))
    both = torch.cat([_scaled(search), _scaled(recommendation)], dim=1)
    module = PrefixShareModule(both, search.shape[1], settings)
    for quantizes in (False, True):
        module.quantizes = quantizes
        if quantizes:
            module.initialize_codebooks(settings.seed)
        train_alone(
            module,
            VectorDataModule(batch_size=settings.batch_size, seed=settings.seed),
            num_steps=settings.num_steps,
            device=torch.device("cpu"),
            seed=settings.seed,
        )
    with torch.no_grad():
        latents = module.encoder(both)
        quantizers = {task: module.quantizer(task) for task in TASKS}
        errors: dict[Task, float] = {}
        for task, target in module.split(both).items():
            coded = quantizers[task].decode(quantizers[task].encode(latents))
            left = module.decoders[task](coded) - target
            errors[task] = float(left.square().sum() / target.square().sum())
    return PrefixShare(latents, quantizers, errors)


def _scaled(vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "item dim"]:
    """Center the vectors and scale them to a mean variance of 1 per dimension."""
    centered = vectors.float() - vectors.float().mean(dim=0)
    return centered / centered.square().mean().sqrt().clamp(min=1e-12)
