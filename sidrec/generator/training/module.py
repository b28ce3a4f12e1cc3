"""Training and decoding loop of the joint generator."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from sidrec.corpus.sources.raw_catalogue import Split
from sidrec.corpus.store import popularity
from sidrec.distributed import gather_objects
from sidrec.errors import ConfigError
from sidrec.files import write_json
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.factory import generator_from, new_generator, parts_of
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.generator_settings import (
    GeneratorLossSettings,
    PriorSettings,
    SearchSettings,
    T5Settings,
)
from sidrec.generator.model.query_state_cache import store_text_states
from sidrec.generator.model.request_embedder import InputSettings
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
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.stage_module import StageModule
from sidrec.types import TASKS

_ENCODE_BATCH = 128
_CONSTANTS = ("codes", "prior.codes", *(f"prior.means_{level}" for level in range(16)))


class JointGenerator(StageModule[GeneratorDataModule]):
    """One T5 for both tasks: reads a query or a history, writes the Semantic ID of the answer.

    Args:
        semantic_ids: Folder of one Semantic-ID bundle, or of one per task; ``--from`` gives it.
        encoder_run: Run directory of the bi-encoder; ``--from`` gives it. Only read when
            ``inputs.text_input`` is ``encoder_states``.
        t5: Pretrained T5, or the shape of one that starts from scratch.
        inputs: Encoder input of a request.
        prior: Prior over codes from the request embedding; None: T5 decides alone.
        loss: Cross-entropy of the levels, for both tasks.
        optimizer: AdamW, its schedule, and the losses that it may skip.
        search: Search for the answers.
    """

    stage = "generator"
    data_class = GeneratorDataModule
    model: GeneratorModel

    def __init__(
        self,
        semantic_ids: str,
        encoder_run: str | None = None,
        *,
        t5: T5Settings = T5Settings(),
        inputs: InputSettings = InputSettings(),
        prior: PriorSettings | None = PriorSettings(),
        loss: GeneratorLossSettings = GeneratorLossSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(
            learning_rate=1e-3, warmup_fraction=0.05, decay="cosine"
        ),
        search: SearchSettings = SearchSettings(),
    ) -> None:
        super().__init__(
            optimizer,
            semantic_ids=semantic_ids,
            encoder_run=encoder_run,
            t5=t5,
            inputs=inputs,
            prior=prior,
            loss=loss,
            search=search,
        )
        if inputs.text_input == "encoder_states" and encoder_run is None:
            raise ConfigError(
                "model.inputs.text_input encoder_states needs model.encoder_run; give --from RUN."
            )
        if prior is not None and inputs.text_input != "encoder_states":
            raise ConfigError(
                "model.prior needs model.inputs.text_input encoder_states: without the bi-encoder "
                "a query has no vector; set model.prior to null."
            )
        self.semantic_ids, self.encoder_run = semantic_ids, encoder_run
        self.t5_settings, self.inputs, self.prior = t5, inputs, prior
        self.loss_settings, self.search, self.decoding = loss, search, search.strategy()
        self.weights = {
            "search": loss.search_weight,
            "recommendation": loss.recommendation_weight,
        }
        self._predictions: list[Prediction] = []
        self._ddp_params_and_buffers_to_ignore = [  # constants: DDP would send them at every step
            "model.embedder.item_vectors",
            *(f"model.spaces.{task}.{name}" for task in TASKS for name in _CONSTANTS),
        ]

    def setup(self, stage: str) -> None:
        """Refuse data with longer histories than the model's."""
        del stage
        longest = self._data().histories.max_history_items
        if longest > self.inputs.max_history_items:
            raise ConfigError(
                f"data.histories.max_history_items ({longest}) exceeds "
                f"model.inputs.max_history_items ({self.inputs.max_history_items}); give both the "
                "same."
            )

    def configure_model(self) -> None:
        """Build the model for training; otherwise ``on_load_checkpoint`` does."""
        if hasattr(self, "model") or self.trainer.state.fn != "fit":
            return
        data, prompts = self._data(), [self.inputs.search_prompt, self.inputs.recommendation_prompt]
        self.ids = self._load_ids()
        self.model = new_generator(
            self.t5_settings,
            texts=lambda: [*prompts, *data.corpus.item_texts(), *data.train_queries()],
            inputs=self.inputs,
            prior=self.prior,
            ids=self.ids,
            popularity=popularity(data.corpus.train_interactions(), data.corpus.num_items),
            encoder_run=self.encoder_run,
        )
        self.model.decoding = self.decoding

    def on_fit_start(self) -> None:
        """Compile T5, if asked to; encode the training queries once: the encoder is frozen."""
        if self.t5_settings.torch_compile:
            self.model.compile_t5()
        embedder = self.model.embedder
        if embedder.tower is not None and self._data().tasks.search_share > 0:
            embedder.states = store_text_states(
                embedder.tower.to(self.device),
                self._data().train_queries(),
                max_tokens=self.inputs.max_query_tokens,
                batch_size=_ENCODE_BATCH,
                folder=Path(self.trainer.default_root_dir) / "cache",
                bf16=str(self.trainer.precision).startswith("bf16"),
            )

    def training_step(self, batch: GeneratorBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the levels' losses of one batch of one task."""
        loss: Tensor = self.model(batch, label_smoothing=self.loss_settings.label_smoothing).sum()
        ids = self._data().corpus.item_ids
        mean = self._mean_loss(loss, batch_idx, task=batch.task, items=batch.target, item_ids=ids)
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.target))
        return loss * self.weights[batch.task]

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put beside the weights what the model is built from, and the bundle's hash."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["generator"] = parts_of(self.model)
        checkpoint["bundle_hash"] = self.ids.hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the checkpoint; refuse another bundle.

        Raises:
            DataError: If the Semantic IDs are not those that the weights were trained on, or
                belong to another corpus than the data.
        """
        super().on_load_checkpoint(checkpoint)
        if not hasattr(self, "ids"):
            self.ids = self._load_ids()
        self.ids.refuse_other_than(checkpoint["bundle_hash"], self.semantic_ids)
        if not hasattr(self, "model"):
            self.model = generator_from(
                checkpoint["generator"],
                inputs=self.inputs,
                prior=self.prior,
                ids=self.ids,
                encoder_run=self.encoder_run,
            )
        self.model.decoding = self.decoding

    def _load_ids(self) -> TaskBundles:
        fingerprint = None if self._trainer is None else self._data().corpus.fingerprint
        return TaskBundles.load(Path(self.semantic_ids), corpus_fingerprint=fingerprint)

    def _answer(self, batch: GeneratorBatch, split: Split, loader: int) -> list[Prediction]:
        """Answer a batch of search (loader 0) or recommendation (1)."""
        if batch.num_requests == 0:  # this rank has no share; it waits for the others at the end
            return []
        asked = self._data().requests(split)[loader]
        decoded = self.model.answer(batch, num_beams=self.search.num_beams, top_k=self.search.top_k)
        rows = [asked[row] for row in batch.request_rows.tolist()]
        return predictions_of(
            rows,
            decoded,
            self.model.space(batch.task).trie,
            split=split,
            exclude_history=self._data().corpus.exclude_history,
        )

    def _gathered(self) -> list[Prediction]:
        """Return the predictions of all ranks, and forget this rank's."""
        own, self._predictions = self._predictions, []
        return [one for part in gather_objects(own) for one in part]
