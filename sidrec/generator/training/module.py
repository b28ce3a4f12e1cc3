"""Training and evaluation loop of the joint generator."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from sidrec.console import say
from sidrec.corpus.cold_start import cold_start_items
from sidrec.corpus.schema import Split
from sidrec.corpus.store import popularity
from sidrec.distributed import gather_objects
from sidrec.errors import ConfigError
from sidrec.figures import Prediction, evaluate, ranked_lists, validation_figures
from sidrec.files import write_json
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.calibrate import calibrate, gain_over_prior
from sidrec.generator.model.causal.causal_settings import CausalLmSettings
from sidrec.generator.model.factory import generator_from, new_generator, parts_of
from sidrec.generator.model.generator_model import AnswerBy, GeneratorModel
from sidrec.generator.model.generator_settings import (
    GeneratorLossSettings,
    SearchSettings,
    T5Settings,
)
from sidrec.generator.model.query_state_cache import store_text_states
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.scorers.item_prior import ItemPrior
from sidrec.generator.scorers.prior_settings import PriorSettings
from sidrec.generator.training.datamodule import GeneratorDataModule
from sidrec.generator.training.parts_alone import PartsAlone
from sidrec.generator.training.predictions import predictions_of, write_predictions
from sidrec.metrics import ranking_metrics
from sidrec.runs.directory import RunDirectory
from sidrec.runs.lightning_private import is_attached
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.training.activation_checkpointing import checkpoint_activations
from sidrec.training.lora import keep_adapters_only, restore_base
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.sharding import whole_weights
from sidrec.training.stage_module import StageModule
from sidrec.types import TASKS, Task

_ENCODE_BATCH = 128


class JointGenerator(StageModule[GeneratorDataModule]):
    """Joint generator: one T5 that maps a query or a history to the Semantic ID of an item.

    Args:
        semantic_ids: Folder of one Semantic-ID bundle, or of one per task; ``--from`` gives it.
        encoder_run: Run directory of the bi-encoder; ``--from`` gives it. Only read when
            ``inputs.text_input`` reads its states.
        t5: Pretrained T5, or the shape of one that starts from scratch.
        causal_lm: Causal language model in place of T5; None takes T5.
        inputs: Encoder input of a request.
        prior: Scorers whose weighted sum is the prior over items; None: T5 ranks alone.
        loss: Cross-entropy over the levels, for both tasks.
        optimizer: AdamW, its schedule, and the number of losses that it may skip.
        search: Decoding of ranked lists.
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
        causal_lm: CausalLmSettings | None = None,
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
            causal_lm=causal_lm,
            inputs=inputs,
            prior=prior,
            loss=loss,
            search=search,
        )
        if inputs.reads_states and encoder_run is None:
            raise ConfigError(
                f"model.inputs.text_input {inputs.text_input} needs model.encoder_run; give --from "
                "RUN."
            )
        if prior is not None and "dense" in prior.search and not inputs.reads_states:
            raise ConfigError(
                "model.prior.search names 'dense', which needs model.inputs.text_input "
                "encoder_states or tokens_and_states: without the bi-encoder a query has no "
                "embedding; leave it out."
            )
        if causal_lm is not None and t5 != T5Settings():
            raise ConfigError("model.t5 and model.causal_lm are both given; leave one out.")
        self.causal_lm = causal_lm
        self.semantic_ids, self.encoder_run = semantic_ids, encoder_run
        self.t5_settings, self.inputs, self.prior = t5, inputs, prior
        self.loss_settings, self.search, self.decoding = loss, search, search.strategy()
        self.weights = {
            "search": loss.search_weight,
            "recommendation": loss.recommendation_weight,
        }
        self._predictions: list[Prediction] = []
        self._alone = PartsAlone()
        self._valid_batches: list[tuple[int, GeneratorBatch]] = []
        self._ddp_params_and_buffers_to_ignore = [  # constants: DDP would send them at every step
            "model.embedder.item_vectors",
            *(f"model.spaces.{task}.codes" for task in TASKS),
        ]

    def setup(self, stage: str) -> None:
        """Refuse data whose histories are longer than the model reads."""
        super().setup(stage)
        longest = self._data().histories.max_history_items
        if longest > self.inputs.max_history_items:
            raise ConfigError(
                f"data.histories.max_history_items ({longest}) exceeds "
                f"model.inputs.max_history_items ({self.inputs.max_history_items}); give both the "
                "same."
            )
        if self._data().tasks.indexing_text == "words" and not self.inputs.reads_tokens:
            raise ConfigError(
                "data.tasks.indexing_text words needs model.inputs.text_input tokens or "
                "tokens_and_states: encoder_states reads no words of an indexing example."
            )

    def configure_model(self) -> None:
        """Build the model for training; otherwise ``on_load_checkpoint`` does."""
        if hasattr(self, "model") or self.trainer.state.fn != "fit":
            return
        data, prompts = self._data(), [self.inputs.search_prompt, self.inputs.recommendation_prompt]
        self.ids = self._load_ids()
        self.model = new_generator(
            self.causal_lm or self.t5_settings,
            texts=lambda: [*prompts, *data.corpus.item_texts(), *data.train_queries()],
            inputs=self.inputs,
            ids=self.ids,
            popularity=popularity(data.corpus.train_interactions(), data.corpus.num_items),
            encoder_run=self.encoder_run,
            prior=self._new_prior(data),
        )
        self.model.decoding = self.decoding
        if self.model.prior is not None:  # constants as well
            self._ddp_params_and_buffers_to_ignore += [
                f"model.prior.{name}" for name, _ in self.model.prior.named_buffers()
            ]

    def _new_prior(self, data: GeneratorDataModule) -> ItemPrior | None:
        """Make the prior of the trained tasks from the corpus."""
        if self.prior is None:
            return None
        return ItemPrior.of_corpus(
            data.corpus,
            self.prior,
            tasks=data.trained_tasks,
            item_vectors=self.ids.item_vectors,
            popularity=popularity(data.corpus.train_interactions(), data.corpus.num_items),
            cross_fit=self.causal_lm is None or not self.causal_lm.all_positions,
        )

    def on_fit_start(self) -> None:
        """Prepare T5's forward; cache the frozen encoder's states of the training queries."""
        if (self.causal_lm or self.t5_settings).activation_checkpointing:
            checkpoint_activations(self.model.t5)
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

    def on_fit_end(self) -> None:
        """Warn of trained tasks whose prior was not calibrated."""
        prior = self.model.prior
        for task in () if prior is None else prior.names:
            if prior is not None and not prior.is_calibrated(task):
                say(
                    f"{task}: the prior was not calibrated because no validation request was "
                    "scored; it keeps its trained weights."
                )

    def training_step(self, batch: GeneratorBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses of all levels, for a batch of one task."""
        loss: Tensor = self.model(batch, label_smoothing=self.loss_settings.label_smoothing).sum()
        ids = self._data().corpus.item_ids
        mean = self._mean_loss(loss, batch_idx, task=batch.task, items=batch.target, item_ids=ids)
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.target))
        return loss * self.weights[batch.task]

    def validation_step(
        self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect a batch of validation requests, decoded at the epoch's end after calibration."""
        del batch_idx
        self._valid_batches.append((dataloader_idx, batch))

    def test_step(self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Decode a batch of test requests: with both parts, with T5 alone, with the prior alone."""
        del batch_idx
        self._predictions += self._answer(batch, "test", dataloader_idx)
        prior = self.model.prior
        if prior is None or batch.task not in prior.names or batch.num_requests == 0:
            return
        self._alone.add(
            batch,
            {by: self._answer(batch, "test", dataloader_idx, by=by) for by in ("prior", "t5")},
            gain_over_prior(self.model, batch),
        )

    def predict_step(
        self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Prediction]:
        """Decode a batch of test requests for ``predictions.parquet``."""
        del batch_idx
        answered = self._answer(batch, "test", dataloader_idx)
        self._predictions += answered
        return answered

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics of both tasks."""
        self._valid_batches = []
        self._metrics = {task: ranking_metrics().to(self.device) for task in TASKS}

    def on_validation_epoch_end(self) -> None:
        """Calibrate the prior, decode, and log the metrics and the means that rank checkpoints.

        The means are harmonic, over the tasks with a share in training. ``TASK/loss`` is the mean
        negative log-likelihood of the requests' targets in nats, without label smoothing;
        ``loss`` is its mean over those tasks.
        """
        batches, self._valid_batches = self._valid_batches, []
        likelihoods: list[tuple[Task, float]] = []
        with self.trainer.precision_plugin.forward_context(), whole_weights(self):
            calibrate(self.model, [batch for _, batch in batches])
            for loader, batch in batches:
                own = self.model.log_likelihood(batch).tolist() if batch.num_requests else []
                likelihoods += [(batch.task, one) for one in own if not math.isnan(one)]
                if answered := self._answer(batch, "valid", loader):
                    lists = (one.to(self.device) for one in ranked_lists(answered))
                    self._metrics[batch.task].update(*lists)
        found = {
            f"{task}/{name}": value.item()
            for task, metrics in self._metrics.items()
            for name, value in metrics.compute().items()
        }
        figures = {key: value for key, value in found.items() if not math.isnan(value)}
        trained = self._data().trained_tasks
        wanted = validation_figures(figures, trained=trained) | self._losses(likelihoods, trained)
        self.log_dict({f"val/{key}": value for key, value in wanted.items()}, batch_size=1)

    @staticmethod
    def _losses(
        likelihoods: list[tuple[Task, float]], trained: Collection[Task]
    ) -> dict[str, float]:
        """Return the mean negative log-likelihoods over all ranks, and their mean over tasks."""
        every = sorted(one for rank in gather_objects(likelihoods) for one in rank)
        found = {
            task: -math.fsum(own) / len(own)
            for task in trained
            if (own := [one for of, one in every if of == task])
        }
        mean = {"loss": math.fsum(found.values()) / len(found)} if found else {}
        return {f"{task}/loss": loss for task, loss in found.items()} | mean

    def on_test_epoch_end(self) -> None:
        """Write ``predictions.parquet`` and ``metrics.json`` into the run directory."""
        predictions = self._gathered()
        cold = cold_start_items(self._data().corpus)
        figures = evaluate(predictions, self.model.popularity.cpu(), cold=cold) | self.ids.quality
        figures |= self._alone.figures(self.model)
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

    def _weight_groups(self) -> list[dict[str, Any]]:
        if self.prior is None or self.model.prior is None:
            return []
        own = list(self.model.prior.parameters())
        return [{"params": own, "lr": self.prior.learning_rate, "weight_decay": 0.0}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the parts of the model and the bundle's hash to the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["generator"] = parts_of(self.model)
        if self.model.base is not None:
            keep_adapters_only(checkpoint, self)
        checkpoint["bundle_hash"] = self.ids.hash
        checkpoint["exclude_history"] = self._data().corpus.exclude_history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the checkpoint; refuse another bundle.

        Raises:
            DataError: If the Semantic IDs differ from those of the training, or belong to another
                corpus than the data.
            RunError: If the pretrained model of the adapters has changed.
        """
        super().on_load_checkpoint(checkpoint)
        if not hasattr(self, "ids"):
            self.ids = self._load_ids()
        self.ids.refuse_other_than(checkpoint["bundle_hash"], self.semantic_ids)
        if not hasattr(self, "model"):
            self.model = generator_from(
                checkpoint["generator"],
                inputs=self.inputs,
                ids=self.ids,
                encoder_run=self.encoder_run,
            )
        if self.model.base is not None:
            restore_base(checkpoint, self, base=self.model.base["name"])
        self.model.decoding = self.decoding

    def _load_ids(self) -> TaskBundles:
        fingerprint = None if not is_attached(self) else self._data().corpus.fingerprint
        return TaskBundles.load(Path(self.semantic_ids), corpus_fingerprint=fingerprint)

    def _answer(
        self, batch: GeneratorBatch, split: Split, loader: int, *, by: AnswerBy = "both"
    ) -> list[Prediction]:
        """Decode a batch of search (loader 0) or recommendation (loader 1)."""
        if batch.num_requests == 0:  # this rank has no requests; it waits for the others at the end
            return []
        asked = self._data().requests(split)[loader]
        width, top_k = self.search.num_beams, self.search.top_k
        decoded = self.model.answer(batch, num_beams=width, top_k=top_k, by=by)
        rows = [asked[row] for row in batch.request_rows.tolist()]
        return predictions_of(
            rows,
            decoded,
            self.model.space(batch.task).trie,
            split=split,
            exclude_history=self._data().corpus.exclude_history,
        )

    def _gathered(self) -> list[Prediction]:
        """Return the predictions of all ranks, and clear this rank's."""
        own, self._predictions = self._predictions, []
        return [one for part in gather_objects(own) for one in part]
