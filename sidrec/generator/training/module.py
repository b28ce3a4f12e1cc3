"""Training and decoding loop of the joint generator."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sidrec.corpus.sources.raw_catalogue import Split
from sidrec.corpus.store import popularity
from sidrec.distributed import gather_objects, rank_and_world_size
from sidrec.errors import ConfigError, DataError
from sidrec.files import write_json
from sidrec.generator.decoding.search_strategy import Decoding, DecodingMode
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.factory import generator_from, new_generator, parts_of
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.query_state_cache import store_text_states
from sidrec.generator.model.request_embedder import HistoryInput, InputSettings, TextInput
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.generator.training.predictions import predictions_of, write_predictions
from sidrec.metrics import (
    Prediction,
    evaluate,
    ranked_lists,
    ranking_metrics,
    validation_figures,
)
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.training.counter_rng import key_of
from sidrec.training.nan_guard import LossGuard
from sidrec.training.optimizer import Decay, optimizer_of
from sidrec.types import TASKS

_ENCODE_BATCH = 128
_CONSTANTS = ("codes", "prior.codes", *(f"prior.means_{level}" for level in range(16)))


class JointGenerator(L.LightningModule):
    """One T5 for both tasks: reads a query or a history, writes the Semantic ID of the answer.

    Args:
        semantic_ids: Folder of one Semantic-ID bundle, or of one per task; ``--from`` gives it.
        encoder_run: Run directory of the bi-encoder; ``--from`` gives it. Only read when
            ``text_input`` is ``encoder_states``.
        t5: Hub name or folder of a pretrained T5, or settings of ``transformers.T5Config`` for
            one that starts from scratch, with a tokenizer trained on the corpus.
        text_vocabulary_size: Text tokens of a T5 from scratch, at most.
        text_input: ``tokens`` or ``encoder_states``, see ``InputSettings``.
        history_input: ``codes`` or ``items``, see ``InputSettings``.
        search_prompt: Template with ``{query}``.
        recommendation_prompt: Template with ``{history}``.
        max_query_tokens: Longer queries are cut.
        max_history_items: Only the most recent items are read; at least the data's.
        query_token_dropout: Probability in training that a query token is not seen.
        prior_scale: Start of the factor with which the request's own vector scores the codes, see
            ``CodebookPrior``; null: T5 decides alone.
        prior_half_life_items: Start of its weights of a history: halved every so many items.
        codes_from_items: Start the codes' embeddings from the item embeddings, not at random.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: Of AdamW; norms and biases have none.
        warmup_fraction: Share of all steps over which the learning rate rises from 0.
        decay: How it falls afterwards: ``linear``, ``cosine`` or ``constant``.
        label_smoothing: Share of the target's probability spread over its level.
        search_weight: Factor of the search loss.
        recommendation_weight: Factor of the recommendation loss.
        num_beams: Width of the search when answering.
        top_k: Length of the lists.
        decoding: Mode of the search, with its next two: see ``modes.Decoding``.
        revision: Of ``t5`` on the hub.
        skip_bad_losses: Batches with a NaN or infinite loss that a run may skip; 0 ends it.
        torch_compile: Compile T5's training forward (speed only, rounding aside).
    """

    stage = "generator"
    model: GeneratorModel

    def __init__(
        self,
        semantic_ids: str,
        t5: str | dict[str, Any],
        text_vocabulary_size: int,
        text_input: TextInput,
        history_input: HistoryInput,
        search_prompt: str,
        recommendation_prompt: str,
        max_query_tokens: int,
        max_history_items: int,
        query_token_dropout: float,
        prior_scale: float | None,
        prior_half_life_items: float,
        codes_from_items: bool,
        learning_rate: float,
        weight_decay: float,
        warmup_fraction: float,
        decay: Decay,
        label_smoothing: float,
        search_weight: float,
        recommendation_weight: float,
        num_beams: int,
        top_k: int,
        decoding: DecodingMode = "beam",
        num_groups: int = 1,
        diversity_penalty: float = 0.0,
        encoder_run: str | None = None,
        revision: str | None = None,
        skip_bad_losses: int = 0,
        torch_compile: bool = False,
    ) -> None:
        super().__init__()
        self.decoding = Decoding(decoding, num_groups, diversity_penalty)
        self.decoding.check_width(num_beams=num_beams, top_k=top_k)
        if text_input == "encoder_states" and encoder_run is None:
            raise ConfigError("text_input encoder_states needs model.encoder_run; give --from RUN.")
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        names = InputSettings.__dataclass_fields__
        self.inputs = InputSettings(**{name: self.hparams[name] for name in names})
        self.weights = {"search": search_weight, "recommendation": recommendation_weight}
        self.guard = LossGuard(skip_bad_losses)
        self._predictions: list[Prediction] = []
        self._ddp_params_and_buffers_to_ignore = [  # constants: DDP would send them at every step
            "model.embedder.item_vectors",
            *(f"model.spaces.{task}.{name}" for task in TASKS for name in _CONSTANTS),
        ]

    def setup(self, stage: str) -> None:
        """Refuse data with longer histories than the model's."""
        del stage
        data = self._data()
        if data.max_history_items > self.inputs.max_history_items:
            raise ConfigError(
                f"data.max_history_items ({data.max_history_items}) exceeds "
                f"model.max_history_items ({self.inputs.max_history_items}); give both the same."
            )

    def configure_model(self) -> None:
        """Build the model for training; otherwise ``on_load_checkpoint`` does."""
        if hasattr(self, "model") or self.trainer.state.fn != "fit":
            return
        data, prompts = self._data(), [self.inputs.search_prompt, self.inputs.recommendation_prompt]
        self.ids = self._load_ids()
        self.model = new_generator(
            self.settings.t5,
            revision=self.settings.revision,
            texts=lambda: [*prompts, *data.corpus.item_texts(), *data.train_queries()],
            text_vocabulary_size=self.settings.text_vocabulary_size,
            codes_from_items=self.settings.codes_from_items,
            inputs=self.inputs,
            ids=self.ids,
            popularity=popularity(data.corpus.train_interactions(), data.corpus.num_items),
            encoder_run=self.settings.encoder_run,
        )
        self.model.decoding = self.decoding

    def on_fit_start(self) -> None:
        """Compile T5, if asked to; encode the training queries once: the encoder is frozen."""
        if self.settings.torch_compile:
            self.model.compile_t5()
        embedder = self.model.embedder
        if embedder.tower is not None and self._data().mix[0] > 0:
            embedder.states = store_text_states(
                embedder.tower.to(self.device),
                self._data().train_queries(),
                max_tokens=self.inputs.max_query_tokens,
                batch_size=_ENCODE_BATCH,
                folder=Path(self.trainer.default_root_dir) / "cache",
                bf16=str(self.trainer.precision).startswith("bf16"),
            )

    def on_train_batch_start(self, batch: GeneratorBatch, batch_idx: int) -> None:
        """Make dropout a function of seed, step and rank: a resumed run repeats it exactly."""
        del batch
        rank, _ = rank_and_world_size()
        torch.manual_seed(key_of(self._data().seed, self.current_epoch, batch_idx, rank, "dropout"))

    def training_step(self, batch: GeneratorBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the levels' losses of one batch of one task."""
        loss: Tensor = self.model(batch, label_smoothing=self.settings.label_smoothing).sum()
        where = f"epoch {self.current_epoch}, step {batch_idx} ({batch.task})"
        ids = self._data().corpus.item_ids
        mean = self.guard.mean(loss, where=where, items=batch.target, item_ids=ids)
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.target))
        return loss * self.weights[batch.task]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the weights as they are after a loss that is no number."""
        del optimizer
        self.guard.drop_bad_gradients(self.parameters())

    def validation_step(
        self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Answer a batch of validation requests, and add the lists to the task's metrics."""
        del batch_idx
        if answered := self._answer(batch, "valid", dataloader_idx):
            items, relevant = ranked_lists(answered)
            self._metrics[batch.task].update(items.to(self.device), relevant.to(self.device))

    def test_step(self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of test requests."""
        del batch_idx
        self._predictions += self._answer(batch, "test", dataloader_idx)

    def predict_step(
        self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Prediction]:
        """Answer a batch of test requests; ``predictions.parquet`` holds the answers."""
        del batch_idx
        answered = self._answer(batch, "test", dataloader_idx)
        self._predictions += answered
        return answered

    def on_validation_epoch_start(self) -> None:
        """Start the metrics of both tasks anew."""
        self._metrics = {task: ranking_metrics().to(self.device) for task in TASKS}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of both tasks, and the means by which checkpoints are chosen.

        Those are harmonic means over the tasks that have a share in training.
        """
        found = {
            f"{task}/{name}": value.item()
            for task, metrics in self._metrics.items()
            for name, value in metrics.compute().items()
        }
        figures = {key: value for key, value in found.items() if not math.isnan(value)}
        wanted = validation_figures(figures, trained=self._data().trained_tasks)
        self.log_dict({f"val/{key}": value for key, value in wanted.items()}, batch_size=1)

    def on_test_epoch_end(self) -> None:
        """Write ``predictions.parquet`` and ``metrics.json`` into the run directory."""
        predictions = self._gathered()
        figures = evaluate(predictions, self.model.popularity.cpu()) | self.ids.quality
        if self.trainer.is_global_zero:
            run = RunDirectory(Path(self.trainer.default_root_dir))
            write_predictions(run.predictions, predictions)
            write_json(run.metrics, figures)
        logged = {k: float(v) for k, v in figures.items() if k.startswith(TASKS)}
        self.log_dict(logged, batch_size=1)

    def on_predict_epoch_end(self) -> None:
        """Write ``predictions.parquet`` into the run directory."""
        found = self._gathered()
        if self.trainer.is_global_zero:
            write_predictions(RunDirectory(Path(self.trainer.default_root_dir)).predictions, found)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over all weights that train, and its schedule by optimizer step."""
        return optimizer_of(self, self.settings, batches_per_epoch=self._data().steps_per_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put beside the weights what the model is built from, and the bundle's hash."""
        checkpoint["generator"] = parts_of(self.model)
        checkpoint["bundle_hash"] = self.ids.hash
        checkpoint["num_skipped_losses"] = self.guard.num_skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the checkpoint; refuse another bundle.

        Raises:
            DataError: If the Semantic IDs are not those that the weights were trained on, or
                belong to another corpus than the data.
        """
        self.guard.num_skipped = checkpoint.get("num_skipped_losses", 0)
        if not hasattr(self, "ids"):
            self.ids = self._load_ids()
        if checkpoint["bundle_hash"] != self.ids.hash:
            raise DataError(
                f"{self.settings.semantic_ids} holds Semantic IDs {self.ids.hash[:12]}, but "
                f"this generator was trained on {checkpoint['bundle_hash'][:12]}; give it those."
            )
        if not hasattr(self, "model"):
            self.model = generator_from(
                checkpoint["generator"],
                inputs=self.inputs,
                ids=self.ids,
                encoder_run=self.settings.encoder_run,
            )
        self.model.decoding = self.decoding

    def _load_ids(self) -> TaskBundles:
        fingerprint = None if self._trainer is None else self._data().corpus.fingerprint
        return TaskBundles.load(Path(self.settings.semantic_ids), corpus_fingerprint=fingerprint)

    def _answer(self, batch: GeneratorBatch, split: Split, loader: int) -> list[Prediction]:
        """Answer a batch of search (loader 0) or recommendation (1)."""
        if batch.num_requests == 0:  # this rank has no share; it waits for the others at the end
            return []
        width, asked = self.settings.num_beams, self._data().requests(split)[loader]
        decoded = self.model.answer(batch, num_beams=width, top_k=self.settings.top_k)
        rows = [asked[row] for row in batch.request_rows.tolist()]
        return predictions_of(
            rows,
            decoded,
            self.model.space(batch.task).trie,
            split=split,
            exclude_history=self._data().exclude_history,
        )

    def _gathered(self) -> list[Prediction]:
        """Return the predictions of all ranks, and forget this rank's."""
        own, self._predictions = self._predictions, []
        return [one for part in gather_objects(own) for one in part]

    def _data(self) -> GeneratorDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, GeneratorDataModule):
            raise ConfigError("JointGenerator trains on data.class_path GeneratorDataModule only.")
        return data
