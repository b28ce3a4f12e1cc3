"""Learned quantizers behind the ``Quantizer`` interface: ``fit`` runs a whole training."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.distributed import from_rank_zero
from sidrec.errors import ConfigError
from sidrec.semantic_ids.kmeans.initialization import uniform_sample
from sidrec.semantic_ids.kmeans.sharded_rows import rows_to_fit
from sidrec.semantic_ids.learned.codebooks import FittedLearnedQuantizer
from sidrec.semantic_ids.learned.method_settings import LearnedMethod
from sidrec.semantic_ids.quantizers.base import FittedQuantizer, Quantizer, refuse_few_items


@dataclass(frozen=True, slots=True)
class LearnedQuantizer(Quantizer):
    """RQ-VAE or Residual-LFQ, trained on the given vectors.

    Every rank trains the same network on the same sample, and all use the result of rank 0. So
    the result does not depend on the number of ranks. For a long training on many devices, use
    ``sidrec fit`` with its own configuration.

    Attributes:
        method: ``RqVae`` or ``ResidualLfq``, with its settings.
        num_steps: Optimizer steps, ``>= 1``.
        batch_size: Items per step, ``>= 1``.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: Weight decay of AdamW.
        warmup_fraction: Share of the steps over which the learning rate rises from 0.
        sample_rows: Most items to train on.
        seed: Seed of weights, shuffles and draws.

    Raises:
        ConfigError: If a setting is out of range.
    """

    method: LearnedMethod
    num_steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0
    sample_rows: int = 1_048_576
    seed: int = 1234

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "sample_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def settings(self) -> dict[str, Any]:
        """Return the settings of method and training as plain JSON types."""
        training = {key: value for key, value in asdict(self).items() if key != "method"}
        return self.method.settings() | training

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Train on a sample of all ranks' rows; every rank gets the same result.

        Raises:
            DataError: If a value is not finite (names rows).
            ConfigError: If there are fewer items than codes.
        """
        rows = rows_to_fit(vectors)
        refuse_few_items(min(rows.num_rows, self.sample_rows), self.method.codebook_sizes)
        generator = torch.Generator().manual_seed(self.seed)
        sample = uniform_sample(rows, sample_rows=self.sample_rows, generator=generator)
        trained = self._train(sample.cpu().clone(), vectors.device)
        tensors = trained.tensors()
        shared = {
            name: from_rank_zero(tensors[name].to(vectors.device)) for name in sorted(tensors)
        }
        return FittedLearnedQuantizer.from_tensors(shared)

    def _train(self, sample: Tensor, device: torch.device) -> FittedLearnedQuantizer:
        from sidrec.semantic_ids.learned.datamodule import VectorDataModule
        from sidrec.semantic_ids.learned.module import QuantizerModule, train_alone
        from sidrec.training.optimizer import OptimizerSettings

        module = QuantizerModule(
            self.method,
            optimizer=OptimizerSettings(
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                warmup_fraction=self.warmup_fraction,
                decay="cosine",
            ),
        )
        module.vectors = sample
        data = VectorDataModule(batch_size=self.batch_size, seed=self.seed)
        train_alone(module, data, num_steps=self.num_steps, device=device, seed=self.seed)
        return module.fitted()


@dataclass(frozen=True, slots=True)
class Trained(Quantizer):
    """Quantizer that is already fitted, for ``build_semantic_ids``.

    Attributes:
        facts: Name and settings of the quantizer.
        fitted: Fitted quantizer.
    """

    facts: dict[str, Any]
    fitted: FittedQuantizer

    def settings(self) -> dict[str, Any]:
        """Return the settings of its training."""
        return self.facts

    def fit(self, vectors: Float[Tensor, "item dim"]) -> FittedQuantizer:
        """Return the fitted quantizer; ``vectors`` are not used."""
        del vectors
        return self.fitted
