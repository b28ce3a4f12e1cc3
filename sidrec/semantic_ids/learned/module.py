"""Training loop of learned quantizers."""

import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from sidrec.encoder.loss import contrastive_loss
from sidrec.errors import ConfigError
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.semantic_ids.learned.codebooks import FittedLearnedQuantizer, layers_of, perceptron
from sidrec.semantic_ids.learned.datamodule import PairedVectors, VectorBatch, VectorDataModule
from sidrec.semantic_ids.learned.method_settings import LearnedMethod
from sidrec.semantic_ids.quantizers.base import refuse_few_items
from sidrec.settings import NonNegativeFloat, PositiveFloat
from sidrec.training.counter_rng import key_of
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.stage_module import StageModule

_INIT_ROWS_PER_CODE = 256
_REMARKS = (
    ".*does not have many workers",
    ".*isinstance.treespec, LeafSpec.*",
    "The `srun` command is available",
)


class QuantizerModule(StageModule[VectorDataModule]):
    """Train an autoencoder with a quantized latent on the vectors of a Semantic-ID bundle.

    Args:
        method: ``RqVae`` or ``ResidualLfq``, with its settings.
        collaborative_weight: Factor of a contrastive loss between the quantized latent vectors of
            items that are near each other in users' histories (PLUM); 0 switches it off.
        collaborative_temperature: Temperature of that loss, unitless, ``> 0``.
        optimizer: AdamW, its schedule, and the losses that it may skip.
        semantic_ids: Bundle whose embeddings are quantized; ``--from`` gives the encoder run's.
        encoder_run: Run directory of the bi-encoder, for the generator; ``--from`` gives it.

    Source:
        Collaborative term: PLUM, sec. 3 (https://arxiv.org/abs/2510.07784). Differs: pairs are
        neighbors in train histories, negatives the batch's items that are not known positives.
    """

    stage = "quantizer"
    data_class = VectorDataModule
    draws = "codes"
    monitor = None  # no metric selects a checkpoint: the last weights are the result

    def __init__(
        self,
        method: LearnedMethod,
        *,
        collaborative_weight: NonNegativeFloat = 0.0,
        collaborative_temperature: PositiveFloat = 0.1,
        optimizer: OptimizerSettings = OptimizerSettings(
            learning_rate=1e-3, weight_decay=0.0, warmup_fraction=0.0, decay="cosine"
        ),
        semantic_ids: str | None = None,
        encoder_run: str | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            collaborative_weight=collaborative_weight,
            collaborative_temperature=collaborative_temperature,
            semantic_ids=semantic_ids,
            encoder_run=encoder_run,
        )
        if collaborative_weight < 0:
            raise ConfigError(
                f"collaborative_weight is {collaborative_weight}, expected 0 or more."
            )
        self.method, self.origin = method, semantic_ids or ""
        self.encoder_run = encoder_run
        self.collaborative_weight = collaborative_weight
        self.collaborative_temperature = collaborative_temperature
        self._bundle: SemanticIdBundle | None = None
        self._vectors: Tensor | None = None

    @property
    def needs_pairs(self) -> bool:
        """Whether a loss term needs pairs of items."""
        return self.collaborative_weight > 0

    @property
    def bundle(self) -> SemanticIdBundle:
        """Bundle whose embeddings are quantized, loaded on first access."""
        if self._bundle is None:
            if not self.origin:
                raise ConfigError("model.semantic_ids names no bundle; give --from RUN.")
            self._bundle = SemanticIdBundle.load(Path(self.origin))
        return self._bundle

    @property
    def vectors(self) -> Float[Tensor, "item dim"]:
        """Vectors to quantize: those that were set, else the bundle's."""
        return self.bundle.embeddings.vectors if self._vectors is None else self._vectors

    @vectors.setter
    def vectors(self, vectors: Tensor) -> None:
        self._vectors = vectors

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpus of the vectors; empty for vectors that were set."""
        return self.bundle.corpus_fingerprint if self._vectors is None else ""

    def configure_model(self) -> None:
        """Build the network and its standardization for the width of the vectors."""
        if hasattr(self, "core"):
            return
        vectors = self.vectors
        refuse_few_items(len(vectors), self.method.codebook_sizes)
        sizes = (vectors.shape[1], *self.method.hidden_sizes, self.method.width)
        self.encoder, self.decoder = perceptron(sizes), perceptron(sizes[::-1])
        self.core = self.method.core(synchronize=self.trainer.world_size > 1)
        mean, std = vectors.new_zeros(sizes[0]), vectors.new_ones(sizes[0])
        if self.method.standardize:
            mean, std = _mean_and_std(vectors)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Initialize the codebooks from the untrained encoder's output for the catalogue."""
        if self.global_step > 0 or not self.method.initializes_from_data:
            return
        seed = self._data().seed
        generator = torch.Generator().manual_seed(key_of(seed, "start") >> 1)
        count = _INIT_ROWS_PER_CODE * max(self.method.codebook_sizes)
        chosen = torch.randperm(len(self.vectors), generator=generator)[:count].sort().values
        latents = self.encoder(self._standard(self.vectors[chosen].to(self.device)))
        self.core.initialize(latents, batch_size=self._batch_size(), seed=seed)

    def training_step(self, batch: VectorBatch, batch_idx: int) -> Tensor:
        """Return reconstruction, commitment and entropy terms, and the collaborative one."""
        rows = self._standard(batch.vectors)
        quantized = self.core(self.encoder(rows), batch_size=self._batch_size(), learn=True)
        reconstruction = F.mse_loss(self.decoder(quantized.vectors), rows)
        loss: Tensor = reconstruction + quantized.loss
        if batch.pairs is not None:
            together = self._collaborative(batch.pairs)
            self.log("train/collaborative_loss", together.detach(), batch_size=len(rows))
            loss = loss + self.collaborative_weight * together
        self._mean_loss(loss, batch_idx)
        self.log("train/reconstruction_loss", reconstruction.detach(), batch_size=len(rows))
        return loss

    def fitted(self) -> FittedLearnedQuantizer:
        """Return the trained quantizer, as fixed tensors."""
        return FittedLearnedQuantizer(
            mean=self.mean,
            std=self.std,
            encoder=layers_of(self.encoder),
            codebooks=self.core.codebooks(),
            decoder=layers_of(self.decoder),
        )

    def settings(self) -> dict[str, Any]:
        """Return name and settings of method and training as plain JSON types, for the bundle."""
        names = ("learning_rate", "weight_decay", "warmup_fraction", "decay")
        both = ("collaborative_weight", "collaborative_temperature")
        training = asdict(self.optimizer_settings)
        return (
            self.method.settings()
            | {name: training[name] for name in names}
            | {name: getattr(self, name) for name in both}
        )

    def _collaborative(self, pairs: PairedVectors) -> Tensor:
        latents = self.encoder(self._standard(torch.cat([pairs.left, pairs.right])))
        codes = self.core(latents, batch_size=self._batch_size(), learn=False).vectors
        left, right = F.normalize(codes, dim=1).chunk(2)
        return contrastive_loss(
            left,
            right,
            temperature=self.collaborative_temperature,
            right_item=pairs.right_item,
            known_positives=pairs.known_positives,
            right_log_frequency=None,
            symmetric=False,
        )

    def _standard(self, vectors: Tensor) -> Tensor:
        standard: Tensor = (vectors - self.mean) / self.std
        return standard

    def _batch_size(self) -> int:
        batches = self._data().batches
        return int(batches.items_per_rank * batches.world_size)


def train_alone(
    module: L.LightningModule,
    data: L.LightningDataModule,
    *,
    num_steps: int,
    device: torch.device,
    seed: int,
) -> None:
    """Train in this process only, independently of other ranks, without writing to disk.

    ``seed`` determines the training; the caller's random state does not change.
    """
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with (
            torch.random.fork_rng(),
            torch.inference_mode(False),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            for remark in _REMARKS:
                warnings.filterwarnings("ignore", message=remark)
            torch.manual_seed(seed)
            trainer = L.Trainer(
                accelerator=device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                plugins=[LightningEnvironment()],  # in place of the outer launcher's environment
                max_steps=num_steps,
                max_epochs=-1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(module, datamodule=data)
    finally:
        lightning.setLevel(level)


def _mean_and_std(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each dimension; a constant dimension has 1."""
    mean = vectors.mean(dim=0, dtype=torch.float64)
    square = torch.zeros_like(mean)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].double()
        square += (chunk - mean).square().sum(dim=0)
    std = (square / len(vectors)).sqrt()
    is_constant = std <= 1e-6 * mean.abs() + 1e-12
    return mean.float(), torch.where(is_constant, 1.0, std).float()
