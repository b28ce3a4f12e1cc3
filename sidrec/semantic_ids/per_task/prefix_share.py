"""One encoder, two decoders, three codebooks: IDs whose first code both tasks share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.lloyd import nearest
from sidrec.semantic_ids.quantizers.rq_codebooks import FittedRqKMeans
from sidrec.types import TASKS, Task

_LLOYD_PASSES = 10


@dataclass(frozen=True, slots=True)
class PrefixShareSettings:
    """All that decides the codes beside the vectors.

    Attributes:
        shared_codes: Size of the codebook that both tasks use first.
        task_codes: Size of each task's own codebook.
        latent_dim: Width of what the encoder makes of both vectors.
        hidden_dim: Width of the hidden layers.
        num_steps: Steps without codebooks, and as many with them.
        batch_size: Items per step.
        learning_rate: Of AdamW.
        commitment_weight: Pull of the codes on the encoder.
        seed: Of weights, batches and first codes.
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
    """What came of the training.

    Attributes:
        latents: What was quantized; row = item_index.
        quantizers: Of each task, over the latents: shared codebook, then its own.
        errors: Per task, squared error of the reconstruction over the variance of its vectors.
    """

    latents: Float[Tensor, "item latent"]
    quantizers: dict[Task, FittedRqKMeans]
    errors: dict[Task, float]


class PrefixShareModel(nn.Module):
    """Encoder of both embeddings of an item, a decoder for each, and the codebooks.

    Source:
        Penha et al. 2025 (arXiv 2508.10478), "Prefix-share". Its architecture is not stated:
        here two layers each, and the task's code quantizes what the shared one leaves.
    """

    def __init__(self, dims: Mapping[Task, int], settings: PrefixShareSettings) -> None:
        super().__init__()
        hidden, latent = settings.hidden_dim, settings.latent_dim
        self.encoder = nn.Sequential(
            nn.Linear(sum(dims.values()), hidden), nn.GELU(), nn.Linear(hidden, latent)
        )
        self.decoders = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, dim))
                for task, dim in dims.items()
            }
        )
        self.shared = nn.Parameter(torch.zeros(settings.shared_codes, latent))
        self.own = nn.ParameterDict(
            {task: torch.zeros(settings.task_codes, latent) for task in dims}
        )

    def loss(
        self, vectors: Mapping[Task, Tensor], *, quantize: bool, commitment_weight: float
    ) -> Float[Tensor, ""]:
        """Return the error of both reconstructions, and that of the codes if there are any."""
        latents = self.encoder(torch.cat(list(vectors.values()), dim=1))
        total = latents.new_zeros(())
        for task, target in vectors.items():
            through = latents
            if quantize:
                coded = self._decoded(latents, task)
                total = total + (coded - latents.detach()).square().mean()
                total = total + commitment_weight * (latents - coded.detach()).square().mean()
                through = latents + (coded - latents).detach()  # gradient as if nothing was lost
            total = total + (self.decoders[task](through) - target).square().mean()
        error: Tensor = total
        return error

    def quantizer(self, task: Task) -> FittedRqKMeans:
        """Return the fixed codebooks of a task, over latents."""
        codebooks = (self.shared.detach().clone(), self.own[task].detach().clone())
        lengths = (torch.ones(1), torch.ones(len(codebooks[0])))
        return FittedRqKMeans(codebooks, lengths, normalized=False)

    def _decoded(self, latents: Tensor, task: Task) -> Float[Tensor, "item latent"]:
        own = self.own[task]
        first = nearest(latents.detach(), self.shared.detach())[1]
        left = latents.detach() - self.shared.detach()[first]
        second = nearest(left, own.detach())[1]
        decoded: Tensor = self.shared[first] + own[second]
        return decoded


def fit_prefix_share(
    search: Float[Tensor, "item dim"],
    recommendation: Float[Tensor, "item other"],
    settings: PrefixShareSettings,
) -> PrefixShare:
    """Train encoder, decoders and codebooks on the vectors of one catalogue, on this rank.

    First the autoencoder alone, then codebooks from k-means of its latents, then all together:
    codes that start on an untrained encoder collapse.

    Raises:
        ConfigError: If there are fewer items than codes.
    """
    num_items = len(search)
    if num_items < max(settings.shared_codes, settings.task_codes):
        raise ConfigError(
            f"{num_items} items cannot fill {settings.shared_codes} shared and "
            f"{settings.task_codes} own codes; lower them."
        )
    vectors: dict[Task, Tensor] = {
        "search": _scaled(search),
        "recommendation": _scaled(recommendation),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = PrefixShareModel({task: vectors[task].shape[1] for task in TASKS}, settings)
        drawn = torch.Generator().manual_seed(settings.seed)
        _train(model, vectors, settings, drawn, quantize=False)
        _start_codebooks(model, vectors, drawn)
        _train(model, vectors, settings, drawn, quantize=True)
    with torch.no_grad():
        latents = model.encoder(torch.cat(list(vectors.values()), dim=1))
        quantizers: dict[Task, FittedRqKMeans] = {task: model.quantizer(task) for task in TASKS}
        errors: dict[Task, float] = {}
        for task in TASKS:
            coded = quantizers[task].decode(quantizers[task].encode(latents))
            left = model.decoders[task](coded) - vectors[task]
            errors[task] = float(left.square().sum() / vectors[task].square().sum())
    return PrefixShare(latents, quantizers, errors)


def _train(
    model: PrefixShareModel,
    vectors: Mapping[Task, Tensor],
    settings: PrefixShareSettings,
    drawn: torch.Generator,
    *,
    quantize: bool,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    num_items = len(vectors["search"])
    for _ in range(settings.num_steps):
        rows = torch.randint(num_items, (settings.batch_size,), generator=drawn)
        batch = {task: part[rows] for task, part in vectors.items()}
        loss = model.loss(batch, quantize=quantize, commitment_weight=settings.commitment_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _start_codebooks(
    model: PrefixShareModel, vectors: Mapping[Task, Tensor], drawn: torch.Generator
) -> None:
    """Put the shared codes on the latents, and each task's on what they leave."""
    latents = model.encoder(torch.cat(list(vectors.values()), dim=1))
    model.shared.copy_(_centroids(latents, len(model.shared), drawn))
    left = latents - model.shared[nearest(latents, model.shared)[1]]
    for codebook in model.own.values():
        codebook.copy_(_centroids(left, len(codebook), drawn))


def _centroids(
    rows: Float[Tensor, "row dim"], num_codes: int, drawn: torch.Generator
) -> Float[Tensor, "code dim"]:
    """Return a few passes of Lloyd's k-means from random rows; codes without rows stay."""
    centroids = rows[torch.randperm(len(rows), generator=drawn)[:num_codes]].clone()
    for _ in range(_LLOYD_PASSES):
        codes: Int[Tensor, " row"] = nearest(rows, centroids)[1]
        counts = torch.bincount(codes, minlength=num_codes)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, codes, rows)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids


def _scaled(vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "item dim"]:
    """Center the vectors and give their dimensions a mean variance of 1."""
    centered = vectors.float() - vectors.float().mean(dim=0)
    return centered / centered.square().mean().sqrt().clamp(min=1e-12)
