"""Training loop of the bi-encoder."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from sidrec.corpus.cold_start import cold_start_items
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.schema import Split
from sidrec.distributed import rank_and_world_size
from sidrec.encoder.dense_retrieval import mean_history, own_slice, recall_figures
from sidrec.encoder.encode import encode_catalogue, encode_texts
from sidrec.encoder.encoder_settings import LossSettings, TowerSettings, ValidationSettings
from sidrec.encoder.loss import contrastive_loss, embed_in_chunks
from sidrec.encoder.tower import EncoderView, TextTower
from sidrec.errors import ConfigError
from sidrec.figures import harmonic_mean
from sidrec.pairs.datamodule import PairDataModule
from sidrec.training.activation_checkpointing import checkpoint_activations
from sidrec.training.lora import apply_lora, keep_adapters_only, restore_base
from sidrec.training.optimizer import OptimizerSettings
from sidrec.training.stage_module import StageModule
from sidrec.types import TASKS, PairBatch, TextTokens

KS = (10, 30)


class BiEncoder(StageModule[PairDataModule]):
    """Bi-encoder: one text tower for queries and items, trained on pairs of both tasks.

    A batch holds one task, and its contrastive loss is multiplied by the task's weight.

    The negatives of a pair are those of one global batch (all ranks). ``accumulate_grad_batches``
    averages the gradients of several such batches and adds no negatives. More negatives come from
    ``data.batch_size``, in bounded memory with ``tower.grad_cache_chunk``, or from more ranks.

    Training works with ``PairDataModule``, or any data module whose loaders yield ``PairBatch``.

    Args:
        tower: Pretrained encoder and how it runs.
        loss: Contrastive loss of both tasks.
        optimizer: AdamW, its schedule, and the losses that it may skip.
        validation: Dense retrieval in validation and test.
    """

    stage = "encoder"
    data_class = PairDataModule
    tower: TextTower

    def __init__(
        self,
        *,
        tower: TowerSettings = TowerSettings(),
        loss: LossSettings = LossSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        validation: ValidationSettings = ValidationSettings(),
    ) -> None:
        super().__init__(optimizer, tower=tower, loss=loss, validation=validation)
        self.tower_settings, self.loss_settings, self.validation = tower, loss, validation
        self.weights = {
            "search": loss.query_item_weight,
            "recommendation": loss.item_item_weight,
        }

    def configure_model(self) -> None:
        """Load the pretrained encoder, with its adapters, unless the tower exists."""
        if not hasattr(self, "tower"):
            self.tower = TextTower(
                self.tower_settings.encoder,
                revision=self.tower_settings.revision,
                dropout=self.tower_settings.dropout,
                length_groups=self.tower_settings.length_groups,
                pooling=self.tower_settings.pooling,
                normalize=self.tower_settings.normalize,
                query_prompt=self.tower_settings.query_prompt,
                item_prompt=self.tower_settings.item_prompt,
            )
            if self.tower_settings.lora is not None:
                apply_lora(self.tower.model, self.tower_settings.lora)

    def setup(self, stage: str) -> None:
        """Refuse batches without negatives, and pairs tokenized for another encoder."""
        super().setup(stage)
        data, own = self._any_data(), self.tower_settings
        if not isinstance(data, PairDataModule):
            return
        if data.batch_size * rank_and_world_size()[1] < 2:
            raise ConfigError(
                "data.batch_size 1 has no negatives to contrast with; give 2 or more."
            )
        for name in ("encoder", "revision", "query_prompt", "item_prompt"):
            ours, theirs = getattr(own, name), getattr(data.tokens, name)
            if ours != theirs:
                raise ConfigError(
                    f"model.tower.{name} is {ours!r} but data.tokens.{name} is {theirs!r}; give "
                    "both the same."
                )

    def on_fit_start(self) -> None:
        """Set up activation checkpointing and ``torch.compile``, as the settings say."""
        if self.tower_settings.activation_checkpointing:
            self.tower.model.config.use_cache = False  # transformers warns of it, even in encoders
            checkpoint_activations(self.tower.model)
        if self.tower_settings.torch_compile:
            self.tower.compile_encoder()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the weighted loss of one global batch of pairs of one task."""
        loss = self._loss(batch)
        corpus = getattr(self._any_data(), "corpus", None)
        mean = self._mean_loss(
            loss,
            batch_idx,
            task=batch.task,
            items=batch.right_item,
            item_ids=None if corpus is None else corpus.item_ids,
        )
        self.log(f"train/{batch.task}/loss", mean, prog_bar=True, batch_size=len(batch.right_item))
        return loss * self.weights[batch.task]

    def validation_step(self, batch: Split | PairBatch) -> None:
        """Rank the whole catalogue for both tasks, or log the loss of a batch of pairs."""
        if isinstance(batch, PairBatch):
            loss, num_pairs = self._loss(batch), len(batch.right_item)
            self.log(f"val/{batch.task}/loss", loss, batch_size=num_pairs, sync_dist=True)
        else:
            self._log_recalls("val", self.dense_recalls(batch))

    def test_step(self, split: Split) -> None:
        """Rank the whole catalogue for the test requests of both tasks."""
        self._log_recalls("test", self.dense_recalls(split))

    def predict_step(self, batch: TextTokens | list[str]) -> Float[Tensor, "text dim"]:
        """Return the embeddings of a batch; strings are item texts, truncated as in training."""
        if not isinstance(batch, TextTokens):
            max_tokens = self._data().tokens.max_item_tokens
            batch = self.tower.tokenize(batch, max_tokens=max_tokens, kind="item")
        tokens = TextTokens(batch.ids.to(self.device), batch.mask.to(self.device))
        embeddings: Tensor = self.tower(tokens)
        return embeddings.float()

    def dense_recalls(self, split: Split) -> dict[str, float]:
        """Return ``search/recall@10`` … of dense retrieval, for ``test`` also of cold-start items.

        Tasks without requests are left out.

        Search ranks items by the query's embedding, recommendation by the mean embedding of the
        user's most recent items. Every rank evaluates its share and gets the means over all
        requests.
        """
        data, size = self._data(), self.validation.encode_batch_size
        corpus = data.corpus
        vectors = encode_catalogue(
            self.text_encoder,
            corpus,
            max_tokens=data.tokens.max_item_tokens,
            batch_size=size,
        ).vectors
        queries = own_slice(search_requests(corpus, split))
        questions = encode_texts(
            self.text_encoder,
            [request.query for request in queries],
            kind="query",
            max_tokens=data.tokens.max_query_tokens,
            batch_size=size,
        )
        histories = own_slice(recommendation_requests(corpus, split))
        users = mean_history(
            vectors,
            [request.history for request in histories],
            most_recent=self.validation.history_items,
        )
        found: dict[str, float] = {}
        cold = cold_start_items(corpus) if split == "test" else None
        both = zip(TASKS, (questions, users), (queries, histories), strict=True)
        for task, asked, requests in both:
            found |= recall_figures(
                task,
                asked.to(self.device),
                vectors.to(self.device),
                requests,
                ks=KS,
                exclude_history=corpus.exclude_history,
                cold=cold,
            )
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the encoder's configuration and tokenizer beside its weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["text_tower"] = self.tower.snapshot()
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.tower_settings.lora is not None:
            keep_adapters_only(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the tower if it does not exist; from the checkpoint alone, unless it has adapters.

        Raises:
            RunError: If the pretrained encoder of the adapters has changed.
        """
        super().on_load_checkpoint(checkpoint)
        if self.tower_settings.lora is not None:
            self.configure_model()
            restore_base(checkpoint, self, base=self.tower_settings.encoder)
        elif not hasattr(self, "tower"):
            self.tower = TextTower.from_snapshot(
                checkpoint["text_tower"], length_groups=self.tower_settings.length_groups
            )

    @property
    def text_encoder(self) -> TextTower:
        """Encoder of texts by ``embed``: the tower, unless a subclass overrides ``embed``."""
        if type(self).embed is BiEncoder.embed:
            return self.tower
        return EncoderView(self)  # type: ignore[return-value]

    def embed(self, tokens: TextTokens) -> Float[Tensor, "text dim"]:
        """Return the tower's embeddings; a subclass may change them, and their width."""
        chunk = self.tower_settings.grad_cache_chunk
        if chunk is None:
            embeddings: Tensor = self.tower(tokens)
            return embeddings
        return embed_in_chunks(self.tower, tokens, chunk_size=chunk)

    def _loss(self, batch: PairBatch) -> Float[Tensor, ""]:
        corrected = batch.task in self.loss_settings.logq_correction
        return contrastive_loss(
            self.embed(batch.left),
            self.embed(batch.right),
            temperature=self.loss_settings.temperature,
            right_item=batch.right_item,
            known_positives=batch.known_positives,
            right_log_frequency=batch.right_log_frequency if corrected else None,
            symmetric=self.loss_settings.symmetric,
        )

    def _log_recalls(self, prefix: str, recalls: dict[str, float]) -> None:
        at_best = [recalls[key] for task in TASKS if (key := f"{task}/recall@{max(KS)}") in recalls]
        mean = harmonic_mean(at_best)
        recalls = recalls | {"recall_harmonic_mean": mean}
        self.log_dict({f"{prefix}/{key}": value for key, value in recalls.items()}, batch_size=1)
