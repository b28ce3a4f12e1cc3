"""Training loop of the bi-encoder."""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.sources.raw_catalogue import Split
from sidrec.distributed import rank_and_world_size
from sidrec.encoder.dense_retrieval import dense_recall, mean_history, own_slice
from sidrec.encoder.encode import encode_catalogue, encode_texts
from sidrec.encoder.grad_cache import embed_in_chunks
from sidrec.encoder.loss import contrastive_loss
from sidrec.encoder.tower import TextTower
from sidrec.errors import ConfigError, RunError
from sidrec.metrics import harmonic_mean
from sidrec.pairs.datamodule import PairDataModule
from sidrec.runs.checkpoints import read_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.training.counter_rng import key_of
from sidrec.training.nan_guard import LossGuard
from sidrec.training.optimizer import Decay, optimizer_of
from sidrec.types import TASKS, PairBatch, TextTokens

KS = (10, 30)


class BiEncoder(L.LightningModule):
    """One text tower for queries and items, trained on pairs of both tasks.

    The sum of two contrastive losses, taken in turns: a batch holds one task, and its loss is
    multiplied with the task's weight.

    The negatives of a pair are those of one global batch (all ranks). ``accumulate_grad_batches``
    averages gradients of several such batches and widens none of them: the loss is that of the
    small batch. More negatives come from ``data.batch_size``, in bounded memory with
    ``grad_cache_chunk``, or from more ranks.

    Args:
        encoder: Hub name, folder, or ``package:NAME/FOLDER``.
        temperature: Softmax temperature, unitless, ``> 0``.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: Of AdamW; biases and norms have none.
        warmup_fraction: Share of all steps over which the learning rate rises from 0.
        decay: How it falls afterwards: ``linear``, ``cosine`` or ``constant``.
        query_item_weight: Factor of the search loss.
        item_item_weight: Factor of the recommendation loss.
        symmetric: Also let each right side find its left side.
        logq_correction: Tasks whose scores are corrected by the right side's log frequency.
        grad_cache_chunk: Texts whose activations are in memory at a time; None for all.
        length_groups: Groups of like length per batch (speed only).
        dropout: Of the encoder; None keeps the model's own.
        history_items: Most recent items whose mean embedding stands for a user in validation.
        encode_batch_size: Texts per forward pass in validation.
        revision: Of the encoder on the hub.
        skip_bad_losses: Batches with a NaN or infinite loss that a run may skip; 0 ends it.
        torch_compile: Compile the encoder when training begins (speed only, rounding aside).
    """

    stage = "encoder"
    tower: TextTower

    def __init__(
        self,
        encoder: str,
        temperature: float,
        learning_rate: float,
        weight_decay: float,
        warmup_fraction: float,
        decay: Decay,
        query_item_weight: float,
        item_item_weight: float,
        symmetric: bool,
        logq_correction: list[str],
        grad_cache_chunk: int | None,
        length_groups: int,
        dropout: float | None,
        history_items: int,
        encode_batch_size: int,
        revision: str | None = None,
        skip_bad_losses: int = 0,
        torch_compile: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0 or learning_rate <= 0:
            raise ConfigError(
                f"temperature and learning_rate must be positive, got {temperature} and "
                f"{learning_rate}."
            )
        if not 0 <= warmup_fraction < 1:
            raise ConfigError(f"warmup_fraction must lie in [0, 1), got {warmup_fraction}.")
        if not set(logq_correction) <= set(TASKS):
            raise ConfigError(f"logq_correction holds {logq_correction}; tasks are {list(TASKS)}.")
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.weights = {"search": query_item_weight, "recommendation": item_item_weight}
        self.guard = LossGuard(skip_bad_losses)

    def configure_model(self) -> None:
        """Load the pretrained encoder, unless the tower is there already."""
        if not hasattr(self, "tower"):
            self.tower = TextTower(
                self.settings.encoder,
                revision=self.settings.revision,
                dropout=self.settings.dropout,
                length_groups=self.settings.length_groups,
            )

    def setup(self, stage: str) -> None:
        """Refuse pairs that were cut by another encoder's tokenizer."""
        del stage
        data = self._data()
        if (data.encoder, data.revision) != (self.settings.encoder, self.settings.revision):
            raise ConfigError(
                f"model.encoder is '{self.settings.encoder}' ({self.settings.revision}) but "
                f"data.encoder is '{data.encoder}' ({data.revision}); give both the same."
            )

    def on_fit_start(self) -> None:
        """Compile the encoder, if asked to."""
        if self.settings.torch_compile:
            self.tower.compile_encoder()

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Make dropout a function of seed, step and rank: a resumed run repeats it exactly."""
        del batch
        rank, _ = rank_and_world_size()
        seed, epoch = self._data().seed, self.current_epoch
        torch.manual_seed(key_of(seed, epoch, batch_idx, rank, "dropout"))

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the weighted loss of one global batch of pairs of one task."""
        corrected = batch.task in self.settings.logq_correction
        loss = contrastive_loss(
            self._embed(batch.left),
            self._embed(batch.right),
            temperature=self.settings.temperature,
            right_item=batch.right_item,
            known_positives=batch.known_positives,
            right_log_frequency=batch.right_log_frequency if corrected else None,
            symmetric=self.settings.symmetric,
        )
        self._log_loss(batch, loss.detach(), batch_idx)
        return loss * self.weights[batch.task]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the weights as they are after a loss that is no number."""
        del optimizer
        self.guard.drop_bad_gradients(self.parameters())

    def validation_step(self, split: Split) -> None:
        """Rank the whole catalogue for the validation requests of both tasks."""
        self._log_recalls("val", self.dense_recalls(split))

    def test_step(self, split: Split) -> None:
        """Rank the whole catalogue for the test requests of both tasks."""
        self._log_recalls("test", self.dense_recalls(split))

    def dense_recalls(self, split: Split) -> dict[str, float]:
        """Return ``search/recall@10`` … of dense retrieval; tasks without requests are left out.

        Search ranks items by the query's embedding, recommendation by the mean embedding of the
        user's most recent items. Every rank asks its share and gets the figures of all.
        """
        data, corpus, size = self._data(), self._data().corpus, self.settings.encode_batch_size
        vectors = encode_catalogue(
            self.tower, corpus, max_tokens=data.max_item_tokens, batch_size=size
        ).vectors
        queries = own_slice(search_requests(corpus, split))
        questions = encode_texts(
            self.tower,
            [request.query for request in queries],
            max_tokens=data.max_query_tokens,
            batch_size=size,
        )
        histories = own_slice(recommendation_requests(corpus, split))
        users = mean_history(
            vectors,
            [request.history for request in histories],
            most_recent=self.settings.history_items,
        )
        found: dict[str, float] = {}
        for task, asked, requests in (
            ("search", questions, queries),
            ("recommendation", users, histories),
        ):
            recalls = dense_recall(
                asked.to(self.device),
                vectors.to(self.device),
                requests,
                ks=KS,
                exclude_history=corpus.exclude_history,
            )
            found |= {f"{task}/recall@{k}": value for k, value in recalls.items() if value == value}
        return found

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over all weights, and its schedule by optimizer step."""
        return optimizer_of(self, self.settings, batches_per_epoch=self._data().steps_per_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the encoder's configuration and tokenizer beside its weights."""
        checkpoint["text_tower"] = self.tower.snapshot()
        checkpoint["num_skipped_losses"] = self.guard.num_skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the tower from the checkpoint alone when it is not there yet."""
        self.guard.num_skipped = checkpoint.get("num_skipped_losses", 0)
        if not hasattr(self, "tower"):
            self.tower = TextTower.from_snapshot(
                checkpoint["text_tower"], length_groups=self.settings.length_groups
            )

    def _embed(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        chunk = self.settings.grad_cache_chunk
        if chunk is None:
            embeddings: Tensor = self.tower(tokens)
            return embeddings
        return embed_in_chunks(self.tower, tokens, chunk_size=chunk)

    def _log_loss(self, batch: PairBatch, loss: Tensor, batch_idx: int) -> None:
        mean = self.guard.mean(
            loss,
            where=f"epoch {self.current_epoch}, step {batch_idx} ({batch.task})",
            items=batch.right_item,
            item_ids=lambda: self._data().corpus.item_ids(),
        )
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.right_item))

    def _log_recalls(self, prefix: str, recalls: dict[str, float]) -> None:
        at_best = [recalls[key] for task in TASKS if (key := f"{task}/recall@{max(KS)}") in recalls]
        mean = harmonic_mean(at_best)
        recalls = recalls | {"recall_harmonic_mean": mean}
        self.log_dict({f"{prefix}/{key}": value for key, value in recalls.items()}, batch_size=1)

    def _data(self) -> PairDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PairDataModule):
            raise ConfigError("BiEncoder trains on data.class_path PairDataModule only.")
        return data


def load_bi_encoder(run: RunDirectory) -> BiEncoder:
    """Return the best bi-encoder of a finished run, on the CPU, in evaluation mode.

    Everything comes from the checkpoint: no hub, no package, no folder of the pretrained encoder
    is needed.

    Raises:
        RunError: If the run has not finished, is no encoder run, or its checkpoint is damaged.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "text_tower" not in checkpoint:
        raise RunError(f"{file} is no bi-encoder; give --from the folder of an encoder run.")
    arguments = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if not name.startswith("_")
    }
    model = BiEncoder(**arguments)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    return model
