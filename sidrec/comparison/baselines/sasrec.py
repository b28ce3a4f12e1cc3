"""Lightning module of SASRec; ``sidrec test`` writes the same files as for a generator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.comparison.baselines.sasrec_data import WindowBatch, WindowDataModule, padded
from sidrec.comparison.baselines.simple import rank_catalogue
from sidrec.corpus.cold_start import cold_start_items
from sidrec.corpus.requests import recommendation_requests
from sidrec.corpus.schema import Split
from sidrec.corpus.store import popularity
from sidrec.distributed import gather_objects
from sidrec.encoder.dense_retrieval import own_slice
from sidrec.errors import ConfigError
from sidrec.figures import Figures, Prediction, evaluate
from sidrec.files import write_json
from sidrec.generator.training.predictions import predictions_of_ranked, write_predictions
from sidrec.runs.directory import RunDirectory
from sidrec.settings import PositiveInt, Probability
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.stage_module import StageModule
from sidrec.types import Request

_START_DEVIATION = 0.02


class Block(nn.Module):
    """Transformer block: pre-norm causal self-attention and feed-forward net, with residuals."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.before_attention, self.before_net = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries_keys_values, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, states: Float[Tensor, "user place dim"]) -> Float[Tensor, "user place dim"]:
        """Return new states; each position attends to itself and to earlier positions."""
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
    """SASRec network: scores of the next item at every position of a history.

    Histories start at position 0. Padding follows their end, which causal attention never reads.

    Args:
        num_items: Number of items in the catalogue.
        dim: Width; a multiple of ``num_heads``.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        max_history_items: Number of positions.
        dropout: Dropout probability in all layers, in [0, 1).

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
        """Return the state at every position, which predicts the next item; -1 pads at the end."""
        places = torch.arange(histories.shape[1], device=histories.device)
        states = self.items(histories.clamp(min=0)) + self.places(places)
        states = F.dropout(states, self.dropout, self.training)
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.last_norm(states)
        return normed

    def scores(self, histories: Int[Tensor, "user place"]) -> Float[Tensor, "user item"]:
        """Return the float32 scores of all items as the next one after each history.

        All scores of an empty history are 0.
        """
        lengths = (histories >= 0).sum(dim=1)
        states = self(histories)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        found: Tensor = (last * (lengths > 0)[:, None]).float() @ self.items.weight.float().T
        return found


def next_item_loss(
    states: Float[Tensor, "user place dim"],
    items: Float[Tensor, "item dim"],
    targets: Int[Tensor, "user place"],
    *,
    mean_targets: float,
) -> Float[Tensor, ""]:
    """Return the sum of cross-entropies over the whole catalogue, in nats, per mean target count.

    Every target of an epoch weighs the same, whichever batch and rank it is in.

    Args:
        states: States that predict the next item.
        items: Embedding of every item.
        targets: item_index; -1 does not count.
        mean_targets: Number of targets that the sum is divided by, ``> 0``: the mean of a batch.

    Source:
        Klenitskiy, Vasilev 2023 (arXiv 2309.07602): with this loss SASRec is as good as BERT4Rec.
    """
    scores = (states @ items.T).flatten(0, 1)  # padding stays in: its share is small, shapes few
    total = F.cross_entropy(scores, targets.flatten(), ignore_index=-1, reduction="sum")
    return total / mean_targets


_REQUESTS_AT_ONCE = 256


class SasRec(StageModule[WindowDataModule]):
    """Self-attentive sequential recommendation over item_index.

    Args:
        dim: Width; a multiple of ``num_heads``.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        max_history_items: Number of most recent items that the model reads.
        dropout: Dropout probability in all layers, in [0, 1).
        top_k: Length of the ranked lists.
        optimizer: AdamW, its schedule, and the losses that it may skip.
    """

    stage = "baseline"
    data_class = WindowDataModule
    model: SasRecModel

    def __init__(
        self,
        *,
        dim: PositiveInt = 128,
        num_blocks: PositiveInt = 2,
        num_heads: PositiveInt = 2,
        max_history_items: PositiveInt = 50,
        dropout: Probability = 0.3,
        top_k: PositiveInt = 30,
        optimizer: OptimizerSettings = OptimizerSettings(
            learning_rate=1e-3, warmup_fraction=0.05, decay="cosine"
        ),
    ) -> None:
        shape: dict[str, Any] = {
            "dim": dim,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "max_history_items": max_history_items,
            "dropout": dropout,
        }
        super().__init__(optimizer, top_k=top_k, **shape)
        if dim % num_heads:
            raise ConfigError(f"model.dim ({dim}) must be a multiple of num_heads ({num_heads}).")
        if not 0 <= dropout < 1 or top_k < 1:
            raise ConfigError(
                f"dropout must lie in [0, 1) and top_k be positive, got {dropout} and {top_k}."
            )
        self.shape, self.top_k = shape, top_k

    def configure_model(self) -> None:
        """Create the weights for the items of the corpus."""
        if not hasattr(self, "model"):
            self._build(self._data().corpus.num_items)

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the next items over the whole catalogue."""
        states = self.model(batch.histories)
        loss = next_item_loss(
            states, self.model.items.weight, batch.targets, mean_targets=batch.mean_targets
        )
        mean = self._mean_loss(loss, batch_idx)
        self.log("train/recommendation/loss", mean, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, split: Split) -> None:
        """Rank the whole catalogue for the validation requests."""
        figures, _ = self._answer(split)
        own = {k: v for k, v in figures.items() if k.startswith("recommendation/") and "@" in k}
        wanted = {k: v for k, v in own.items() if "_" not in k}  # not of parts of the requests
        chosen = own.get("recommendation/recall@30", 0.0)
        wanted["recall_harmonic_mean"] = chosen  # SASRec answers recommendation only
        self.log_dict({f"val/{k}": float(v) for k, v in wanted.items()}, batch_size=1)

    def test_step(self, split: Split) -> None:
        """Write ``predictions.parquet`` and ``metrics.json`` into the run directory."""
        figures, predictions = self._answer(split)
        if self.trainer.is_global_zero:
            run = RunDirectory(Path(self.trainer.default_root_dir))
            write_predictions(run.predictions, predictions)
            write_json(run.metrics, figures)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Create weights with the checkpoint's sizes when there are none yet."""
        super().on_load_checkpoint(checkpoint)
        if not hasattr(self, "model"):
            self._build(len(checkpoint["state_dict"]["model.items.weight"]))

    def _build(self, num_items: int) -> None:
        self.model = SasRecModel(num_items, **self.shape)

    def _answer(self, split: Split) -> tuple[Figures, list[Prediction]]:
        """Answer a split's recommendation requests, split over ranks; all ranks get all results."""
        corpus = self._data().corpus
        counts = popularity(corpus.train_interactions(), corpus.num_items)
        requests = own_slice(recommendation_requests(corpus, split))
        ranked = rank_catalogue(
            self._scores,
            requests,
            counts,
            top_k=self.top_k,
            exclude_history=corpus.exclude_history,
        )
        own = predictions_of_ranked(
            requests, ranked, split=split, exclude_history=corpus.exclude_history
        )
        predictions = [one for part in gather_objects(own) for one in part]
        return evaluate(predictions, counts, cold=cold_start_items(corpus)), predictions

    @torch.inference_mode()
    def _scores(self, requests: Sequence[Request]) -> Float[np.ndarray, "request item"]:
        """Return all scores, in float32 also under mixed precision, whose bf16 makes ties."""
        longest = self.shape["max_history_items"]
        rows = [np.array(one.history[-longest:], np.int64) for one in requests]
        with torch.autocast(self.device.type, enabled=False):
            scores = [
                self.model.scores(
                    padded(rows[first : first + _REQUESTS_AT_ONCE], at_most=longest).to(self.device)
                )
                for first in range(0, len(rows), _REQUESTS_AT_ONCE)
            ]
        return torch.cat(scores).cpu().numpy()
