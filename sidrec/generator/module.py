"""Training and decoding loop of the joint generator."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sidrec.corpus.popularity import popularity
from sidrec.corpus.raw import Split
from sidrec.distributed import gather_objects, rank_and_world_size, sum_over_ranks
from sidrec.encoder.learning_rate import Decay, learning_rate_factor
from sidrec.encoder.loading import load_bi_encoder
from sidrec.encoder.tower import TextTower
from sidrec.errors import ConfigError, DataError, RunError
from sidrec.files import write_json
from sidrec.generator.batches import GeneratorBatch
from sidrec.generator.datamodule import GeneratorDataModule
from sidrec.generator.inputs import HistoryInput, InputSettings, TextInput
from sidrec.generator.model import GeneratorModel
from sidrec.generator.predictions import predictions_of, write_predictions
from sidrec.generator.t5 import (
    load_tokenizer_of,
    start_codes_from_items,
    t5_from_config,
    t5_from_hub,
    train_tokenizer,
)
from sidrec.generator.text_states import store_text_states
from sidrec.generator.vocabulary import CodeVocabulary
from sidrec.metrics import Figures, Prediction, evaluate
from sidrec.pairs.permutation import key_of
from sidrec.run_directory import RunDirectory
from sidrec.semantic_ids.bundle import SemanticIdBundle
from sidrec.types import TASKS

_ENCODE_BATCH = 128


class JointGenerator(L.LightningModule):
    """One T5 for both tasks: reads a query or a history, writes the Semantic ID of the answer.

    Args:
        semantic_ids: Folder of the Semantic-ID bundle; ``--from`` gives the encoder run's.
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
        revision: Of ``t5`` on the hub.
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
        encoder_run: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_beams:
            raise ConfigError(
                f"model.num_beams ({num_beams}) must be at least model.top_k ({top_k}); raise it."
            )
        if text_input == "encoder_states" and encoder_run is None:
            raise ConfigError("text_input encoder_states needs model.encoder_run; give --from RUN.")
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.inputs = InputSettings(
            **{name: self.hparams[name] for name in InputSettings.__dataclass_fields__}
        )
        self.weights = {"search": search_weight, "recommendation": recommendation_weight}
        self._predictions: list[Prediction] = []

    def configure_model(self) -> None:
        """Build the model for training, with a tokenizer from the hub or from the corpus."""
        if hasattr(self, "model"):
            return
        data = self._data()
        self.bundle = SemanticIdBundle.load(
            Path(self.settings.semantic_ids), corpus_fingerprint=data.corpus.fingerprint
        )
        if isinstance(self.settings.t5, str):
            tokenizer = load_tokenizer_of(self.settings.t5, revision=self.settings.revision)
        else:
            texts = [*data.corpus.item_texts(), *data.train_queries()]
            prompts = [self.inputs.search_prompt, self.inputs.recommendation_prompt]
            size = self.settings.text_vocabulary_size
            tokenizer = train_tokenizer(prompts + texts, vocabulary_size=size)
        self._build(tokenizer, popularity(data.corpus.train_interactions(), data.corpus.num_items))

    def _build(self, tokenizer: Tokenizer, counts: Tensor) -> None:
        table, vectors = self.bundle.table, self.bundle.embeddings.vectors
        vocabulary = CodeVocabulary(tokenizer.get_vocab_size(), table.codebook_sizes)
        if isinstance(self.settings.t5, str):
            revision = self.settings.revision
            t5 = t5_from_hub(self.settings.t5, revision=revision, vocabulary=vocabulary)
        else:
            t5 = t5_from_config(self.settings.t5, vocabulary=vocabulary)
        if self.settings.codes_from_items:
            start_codes_from_items(t5, vocabulary, table.codes, vectors, seed=0)
        self.model = GeneratorModel(
            t5, self.inputs, tokenizer, vocabulary, table, vectors, counts, self._tower()
        )

    def _tower(self) -> TextTower | None:
        if self.inputs.text_input == "tokens":
            return None
        tower = load_bi_encoder(RunDirectory(Path(self.settings.encoder_run))).tower
        return tower.eval().requires_grad_(requires_grad=False)

    def on_fit_start(self) -> None:
        """Encode the training queries once: the encoder is frozen."""
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
        losses = self.model(batch, label_smoothing=self.settings.label_smoothing)
        loss = losses.sum()
        _, world_size = rank_and_world_size()
        mean = sum_over_ranks(loss.detach()) / world_size
        if not torch.isfinite(mean):
            raise RunError(
                f"The {batch.task} loss is {mean.item()} at epoch {self.current_epoch}, step "
                f"{batch_idx}; lower model.learning_rate, or use precision bf16-mixed or 32."
            )
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.target))
        return loss * self.weights[batch.task]

    def validation_step(
        self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Answer a batch of validation requests."""
        del batch_idx
        self._answer(batch, "valid", dataloader_idx)

    def test_step(self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of test requests."""
        del batch_idx
        self._answer(batch, "test", dataloader_idx)

    def predict_step(self, batch: GeneratorBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of test requests."""
        del batch_idx
        self._answer(batch, "test", dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log recall of both tasks and their harmonic mean, by which checkpoints are chosen."""
        figures = self._figures(self._gathered())
        recalls = {task: figures.get(f"{task}/recall@{self.settings.top_k}") for task in TASKS}
        known = [float(value) for value in recalls.values() if value is not None]
        mean = len(known) / sum(1 / max(value, 1e-9) for value in known) if known else 0.0
        wanted = {
            key: value for key, value in figures.items() if "recall@" in key and "_" not in key
        }
        wanted |= {"recall_harmonic_mean": mean}
        self.log_dict({f"val/{key}": float(value) for key, value in wanted.items()}, batch_size=1)

    def on_test_epoch_end(self) -> None:
        """Write ``predictions.parquet`` and ``metrics.json`` into the run directory."""
        predictions = self._gathered()
        figures = self._figures(predictions) | self.bundle.quality
        if self.trainer.is_global_zero:
            run = RunDirectory(Path(self.trainer.default_root_dir))
            write_predictions(run.predictions, predictions)
            write_json(run.metrics, figures)
        self.log_dict(
            {key: float(value) for key, value in figures.items() if key.startswith(TASKS)},
            batch_size=1,
        )

    def on_predict_epoch_end(self) -> None:
        """Write ``predictions.parquet`` into the run directory."""
        predictions = self._gathered()
        if self.trainer.is_global_zero:
            run = RunDirectory(Path(self.trainer.default_root_dir))
            write_predictions(run.predictions, predictions)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over all weights that train, and its schedule by optimiser step."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2]},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(  # of a method LambdaLR would save its dict
            optimizer, lambda step: self._factor(step)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put tokenizer, popularity and the bundle's hash beside the weights."""
        checkpoint["tokenizer"] = self.model.embedder.tokenizer.to_str()
        checkpoint["popularity"] = self.model.popularity
        checkpoint["bundle_hash"] = self.bundle.hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the checkpoint when it is not there yet; refuse another bundle.

        Raises:
            DataError: If the Semantic IDs are not those that the weights were trained on.
        """
        if not hasattr(self, "bundle"):
            self.bundle = SemanticIdBundle.load(Path(self.settings.semantic_ids))
        if checkpoint["bundle_hash"] != self.bundle.hash:
            raise DataError(
                f"{self.settings.semantic_ids} holds Semantic IDs {self.bundle.hash[:12]}, but this "
                f"generator was trained on {checkpoint['bundle_hash'][:12]}; give it those."
            )
        if not hasattr(self, "model"):
            tokenizer = Tokenizer.from_str(checkpoint["tokenizer"])
            self._build(tokenizer, checkpoint["popularity"])

    def _answer(self, batch: GeneratorBatch, split: Split, which: int) -> None:
        decoded = self.model.answer(
            batch, num_beams=self.settings.num_beams, top_k=self.settings.top_k
        )
        asked = self._data().requests(split)[which]
        requests = [asked[row] for row in batch.request_rows.tolist()]
        self._predictions += predictions_of(requests, decoded, self.model.trie, split=split)

    def _gathered(self) -> list[Prediction]:
        """Return the predictions of all ranks, and forget this rank's."""
        own, self._predictions = self._predictions, []
        return [one for part in gather_objects(own) for one in part]

    def _figures(self, predictions: list[Prediction]) -> Figures:
        return evaluate(predictions, self.model.popularity.cpu())

    def _factor(self, step: int) -> float:
        return learning_rate_factor(
            step,
            total_steps=self._total_steps(),
            warmup_fraction=self.settings.warmup_fraction,
            decay=self.settings.decay,
        )

    def _total_steps(self) -> int | None:
        if self.trainer.max_steps > 0:
            return int(self.trainer.max_steps)
        if not self.trainer.max_epochs or self.trainer.max_epochs < 0:
            return None
        steps = math.ceil(self._data().steps_per_epoch / self.trainer.accumulate_grad_batches)
        return int(steps * self.trainer.max_epochs)

    def _data(self) -> GeneratorDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, GeneratorDataModule):
            raise ConfigError("JointGenerator trains on data.class_path GeneratorDataModule only.")
        return data
