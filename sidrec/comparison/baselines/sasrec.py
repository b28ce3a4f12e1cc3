"""Training loop of SASRec; its test writes the same files as the generator's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.comparison.baselines.sasrec_data import WindowBatch, WindowDataModule, padded
from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.corpus.requests import recommendation_requests
from sidrec.corpus.sources.raw_catalogue import Split
from sidrec.corpus.store import popularity
from sidrec.distributed import gather_objects, rank_and_world_size
from sidrec.encoder.dense_retrieval import own_slice
from sidrec.errors import ConfigError
from sidrec.files import write_json
from sidrec.generator.training.predictions import predictions_of_ranked, write_predictions
from sidrec.metrics import Figures, Prediction, evaluate
from sidrec.runs.directory import RunDirectory
from sidrec.training.counter_rng import key_of
from sidrec.training.nan_guard import finite_mean
from sidrec.training.optimizer import Decay, optimizer_of
from sidrec.types import Request

_START_DEVIATION = 0.02


class Block(nn.Module):
    """Causal self-attention and a feed-forward net, each after a norm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.before_attention, self.before_net = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries_keys_values, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, states: Float[Tensor, "user place dim"]) -> Float[Tensor, "user place dim"]:
        """Return new states; a place sees itself and those before it."""
        users, places, dim = states.shape
        parts = self.queries_keys_values(self.before_attention(states))
        parts = parts.view(users, places, 3, self.num_heads, dim // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        hidden = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=hidden, is_causal=True)
        seen = self.out(seen.transpose(1, 2).reshape(users, places, dim))
        states = states + F.dropout(seen, self.dropout, self.training)
        return states + F.dropout(self.net(self.before_net(states)), self.dropout, self.training)


class SasRecModel(nn.Module):
    """Scores of the next item at every place of a history.

    Histories start at place 0 and are padded behind their end, where a causal model never looks.

    Args:
        num_items: item_index runs from 0.
        dim: Width; a multiple of ``num_heads``.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        max_history_items: Places.
        dropout: Probability, everywhere.

    Source:
        Kang, McAuley 2018 (arXiv 1808.09781). Differs: norms before the sub-layers, GELU.
    """

    def __init__(
        self,
        num_items: int,
        *,
        dim: int,
        num_blocks: int,
        num_heads: int,
        max_history_items: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.items, self.places = nn.Embedding(num_items, dim), nn.Embedding(max_history_items, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(num_blocks))
        self.last_norm = nn.LayerNorm(dim)
        for embedding in (self.items, self.places):
            nn.init.normal_(embedding.weight, std=_START_DEVIATION)

    def forward(self, histories: Int[Tensor, "user place"]) -> Float[Tensor, "user place dim"]:
        """Return what every place expects next; -1 pads behind the end."""
        places = torch.arange(histories.shape[1], device=histories.device)
        states = self.items(histories.clamp(min=0)) + self.places(places)
        states = F.dropout(states, self.dropout, self.training)
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.last_norm(states)
        return normed

    def scores(self, histories: Int[Tensor, "user place"]) -> Float[Tensor, "user item"]:
        """Return the score of every item as the one after the end of each history.

        A history without items expects what an average first place would: all scores 0.
        """
        lengths = (histories >= 0).sum(dim=1)
        states = self(histories)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        found: Tensor = (last * (lengths > 0)[:, None]) @ self.items.weight.T
        return found


def next_item_loss(
    states: Float[Tensor, "user place dim"],
    items: Float[Tensor, "item dim"],
    targets: Int[Tensor, "user place"],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the whole catalogue, in nats; targets of -1 do not count.

    Source:
        Klenitskiy, Vasilev 2023 (arXiv 2309.07602): with this loss SASRec is as good as BERT4Rec.
    """
    real = targets >= 0
    return F.cross_entropy(states[real] @ items.T, targets[real])


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
        ranked = rank_catalogue(
            self._scores,
            requests,
            counts,
            top_k=self.settings.top_k,
            exclude_history=corpus.exclude_history,
        )
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
