"""Training loop of SASRec; its test writes the same files as the generator's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.comparison.baselines import rank_catalogue
from sidrec.comparison.sasrec.datamodule import WindowBatch, WindowDataModule, padded
from sidrec.comparison.sasrec.model import SasRecModel, next_item_loss
from sidrec.corpus.popularity import popularity
from sidrec.corpus.raw import Split
from sidrec.corpus.requests import recommendation_requests
from sidrec.distributed import gather_objects, rank_and_world_size
from sidrec.encoder.dense import own_slice
from sidrec.encoder.learning_rate import Decay
from sidrec.encoder.loss_guard import finite_mean
from sidrec.encoder.optimizer import optimizer_of
from sidrec.errors import ConfigError
from sidrec.files import write_json
from sidrec.generator.predictions import predictions_of_ranked, write_predictions
from sidrec.metrics import Figures, Prediction, evaluate
from sidrec.pairs.permutation import key_of
from sidrec.run_directory import RunDirectory
from sidrec.types import Request

_REQUESTS_AT_ONCE = 256


class SasRec(L.LightningModule):
    """Self-attentive sequential recommendation over item_index.

    Args:
        dim: Width; a multiple of ``num_heads``.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        max_history_items: Most recent items that are read.
        dropout: Probability, everywhere.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: Of AdamW; biases and norms have none.
        warmup_fraction: Share of all steps over which the learning rate rises from 0.
        decay: How it falls afterwards: ``linear``, ``cosine`` or ``constant``.
        top_k: Length of the lists.
    """

    stage = "baseline"
    model: SasRecModel

    def __init__(
        self,
        dim: int,
        num_blocks: int,
        num_heads: int,
        max_history_items: int,
        dropout: float,
        learning_rate: float,
        weight_decay: float,
        warmup_fraction: float,
        decay: Decay,
        top_k: int,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.dim ({dim}) must be a multiple of num_heads ({num_heads}).")
        if not 0 <= dropout < 1 or learning_rate <= 0 or top_k < 1:
            raise ConfigError(
                f"dropout {dropout}, learning_rate {learning_rate}, top_k {top_k}: dropout must "
                "lie in [0, 1), the others must be positive."
            )
        self.save_hyperparameters()
        self.settings: Any = self.hparams

    def configure_model(self) -> None:
        """Make the weights for the corpus's items."""
        if not hasattr(self, "model"):
            self._build(self._data().corpus.num_items)

    def on_train_batch_start(self, batch: WindowBatch, batch_idx: int) -> None:
        """Make dropout a function of seed, step and rank: a resumed run repeats it exactly."""
        del batch
        rank, _ = rank_and_world_size()
        torch.manual_seed(key_of(self._data().seed, self.current_epoch, batch_idx, rank, "dropout"))

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of what came next, over the whole catalogue."""
        states = self.model(batch.histories)
        loss = next_item_loss(states, self.model.items.weight, batch.targets)
        mean = finite_mean(
            loss,
            where=f"epoch {self.current_epoch}, step {batch_idx}",
            remedy="lower model.learning_rate, or use precision bf16-mixed or 32",
        )
        self.log("train/recommendation/loss", mean, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, split: Split) -> None:
        """Rank the whole catalogue for the validation requests."""
        figures, _ = self._answer(split)
        recalls = {k: v for k, v in figures.items() if k.startswith("recommendation/recall@")}
        chosen = recalls.get("recommendation/recall@30", 0.0)
        wanted = {k: v for k, v in recalls.items() if "_" not in k}
        wanted["recall_harmonic_mean"] = chosen  # of the one task that it answers
        self.log_dict({f"val/{k}": float(v) for k, v in wanted.items()}, batch_size=1)

    def test_step(self, split: Split) -> None:
        """Write ``predictions.parquet`` and ``metrics.json`` into the run directory."""
        figures, predictions = self._answer(split)
        if self.trainer.is_global_zero:
            run = RunDirectory(Path(self.trainer.default_root_dir))
            write_predictions(run.predictions, predictions)
            write_json(run.metrics, figures)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over all weights, and its schedule by optimizer step."""
        return optimizer_of(self, self.settings, batches_per_epoch=self._data().steps_per_epoch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make weights of the checkpoint's sizes when there are none yet."""
        if not hasattr(self, "model"):
            self._build(len(checkpoint["state_dict"]["model.items.weight"]))

    def _build(self, num_items: int) -> None:
        names = ("dim", "num_blocks", "num_heads", "max_history_items", "dropout")
        self.model = SasRecModel(num_items, **{name: self.settings[name] for name in names})

    def _answer(self, split: Split) -> tuple[Figures, list[Prediction]]:
        """Answer a split's recommendation requests, each rank its share; all ranks get all."""
        corpus = self._data().corpus
        counts = popularity(corpus.train_interactions(), corpus.num_items)
        requests = own_slice(recommendation_requests(corpus, split))
        ranked = rank_catalogue(self._scores, requests, counts, top_k=self.settings.top_k)
        own = predictions_of_ranked(requests, ranked, split=split)
        predictions = [one for part in gather_objects(own) for one in part]
        return evaluate(predictions, counts), predictions

    @torch.inference_mode()
    def _scores(self, requests: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        longest = self.settings.max_history_items
        rows = [np.array(one.history[-longest:], np.int64) for one in requests]
        scores = [
            self.model.scores(self._histories(rows[first : first + _REQUESTS_AT_ONCE])).float()
            for first in range(0, len(rows), _REQUESTS_AT_ONCE)
        ]
        return torch.cat(scores).cpu().numpy()

    def _histories(self, rows: list[np.ndarray]) -> Int[Tensor, "user place"]:
        return padded(rows).to(self.device)

    def _data(self) -> WindowDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, WindowDataModule):
            raise ConfigError("SasRec trains on data.class_path WindowDataModule only.")
        return data
