"""Callback that encodes the catalogue after training and writes its Semantic-ID bundle."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sidrec.console import say
from sidrec.corpus.store import Corpus
from sidrec.distributed import on_rank_zero
from sidrec.encoder.encode import encode_catalogue, encoder_hash
from sidrec.errors import ConfigError, DataError
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.bundle.quality_report import quality_table, save_picture
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.collisions.policies import CollisionPolicy, ReassignLastLevel
from sidrec.semantic_ids.learned.module import QuantizerModule
from sidrec.semantic_ids.learned.quantizer import Trained
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.semantic_ids.quality.purity import attributes_of_items
from sidrec.semantic_ids.quantizers.base import Quantizer
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans
from sidrec.settings import NonNegativeInt, PositiveInt


class LearnedIdsCallback(L.Callback):
    """Write ``semantic_ids/`` into a quantizer's run directory at the end of training.

    Works on all ranks. The bundle keeps the vectors of the bundle that the quantizer trained on.

    Args:
        policy: Collision policy.
    """

    def __init__(self, policy: CollisionPolicy = ReassignLastLevel()) -> None:
        self.policy = policy

    def on_fit_end(self, trainer: L.Trainer, pl_module: QuantizerModule) -> None:
        """Encode, resolve, write, log."""
        run = RunDirectory(Path(trainer.default_root_dir))
        if trainer.fast_dev_run or on_rank_zero(lambda: run.state() == "preempted"):
            return
        before = pl_module.bundle
        data = trainer.datamodule
        training = {"num_steps": trainer.global_step, "seed": data.seed}
        training |= {"batch_size": data.batch_size, "world_size": trainer.world_size}
        bundle = build_semantic_ids(
            before.embeddings,
            quantizer=Trained(pl_module.settings() | training, pl_module.fitted()),
            policy=self.policy,
            item_ids=before.item_ids,
            titles=before.titles,
            source=before.source,
            device=pl_module.device,
        )
        on_rank_zero(lambda: bundle.save(run.semantic_ids))
        for logger in trainer.loggers:
            logger.log_metrics(bundle.quality, step=trainer.global_step)
        if trainer.is_global_zero:
            say(quality_table(bundle))


class SemanticIdCallback(L.Callback):
    """Write ``semantic_ids/`` into an encoder's run directory at the end of training.

    Each rank encodes its share of the catalogue and computes its share of the quantizer's sums.
    The encoder uses the weights of the best checkpoint if a ModelCheckpoint monitors a metric,
    else the last weights. A bundle from the same weights and settings is kept.

    Args:
        quantizer: Quantizer, fitted here.
        policy: Collision policy.
        max_item_tokens: Tokens per item text; longer texts are cut.
        batch_size: Texts per forward pass on each rank.
    """

    def __init__(
        self,
        quantizer: Quantizer = RqKMeans(),
        policy: CollisionPolicy = ReassignLastLevel(),
        *,
        max_item_tokens: NonNegativeInt = 128,
        batch_size: PositiveInt = 256,
    ) -> None:
        self.quantizer, self.policy = quantizer, policy
        self.max_item_tokens, self.batch_size = max_item_tokens, batch_size

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Encode, quantize, resolve, write, log."""
        run = RunDirectory(Path(trainer.default_root_dir))
        if trainer.fast_dev_run or on_rank_zero(lambda: _stopped_early(run)):
            return
        corpus = _corpus_of(trainer)
        kept: list[SemanticIdBundle] = []  # on rank 0 alone

        def is_kept() -> bool:
            kept.extend(self._kept(run, pl_module, corpus, trainer))
            return bool(kept)

        with _best_weights(trainer, pl_module):
            if not on_rank_zero(is_kept):
                bundle = self._make(pl_module, corpus, trainer)
                on_rank_zero(lambda: _write(bundle, run.semantic_ids))
                kept = [bundle]
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(kept[0].quality, step=trainer.global_step)
            say(quality_table(kept[0]))

    def _make(
        self, module: L.LightningModule, corpus: Corpus, trainer: L.Trainer
    ) -> SemanticIdBundle:
        embeddings = encode_catalogue(
            _encoder_of(module),
            corpus,
            max_tokens=self.max_item_tokens,
            batch_size=self.batch_size,
            bf16=_in_bf16(trainer),
        )
        return build_semantic_ids(
            embeddings,
            quantizer=self.quantizer,
            policy=self.policy,
            item_ids=corpus.item_ids(),
            titles=corpus.item_titles(),
            source=self._source(trainer),
            device=module.device,
            attributes=attributes_of_items(corpus.items.data.table),
        )

    def _kept(
        self, run: RunDirectory, module: L.LightningModule, corpus: Corpus, trainer: L.Trainer
    ) -> list[SemanticIdBundle]:
        """Return the bundle on disk if a rebuild would give the same one, else None."""
        try:
            bundle = SemanticIdBundle.load(run.semantic_ids, corpus_fingerprint=corpus.fingerprint)
        except DataError:
            return []
        same = (
            bundle.embeddings.encoder_hash == encoder_hash(_encoder_of(module))
            and bundle.quantizer == self.quantizer.settings()
            and bundle.policy == self.policy.settings()
            and bundle.source == self._source(trainer)
        )
        return [bundle] if same else []

    def _source(self, trainer: L.Trainer) -> dict[str, Any]:
        return {"max_item_tokens": self.max_item_tokens, "bf16": _in_bf16(trainer)}


def _encoder_of(module: L.LightningModule) -> Any:  # noqa: ANN401
    return getattr(module, "text_encoder", module.tower)


def _write(bundle: SemanticIdBundle, folder: Path) -> None:
    bundle.save(folder)
    save_picture(bundle, folder)


def _in_bf16(trainer: L.Trainer) -> bool:
    return str(trainer.precision).startswith("bf16")


def _stopped_early(run: RunDirectory) -> bool:
    return run.state() == "preempted"


def _corpus_of(trainer: L.Trainer) -> Corpus:
    corpus = getattr(trainer.datamodule, "corpus", None)
    if corpus is None:
        raise ConfigError(
            "SemanticIdCallback needs a datamodule with a corpus; use "
            "sidrec.PairDataModule as data.class_path."
        )
    return corpus  # type: ignore[no-any-return]


@contextmanager
def _best_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Load the best checkpoint's weights into the module; restore its own on exit."""
    best = _best_checkpoint(trainer)
    if best is None:
        yield
        return
    stored = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    own = module.state_dict()  # holds what no checkpoint does: the frozen base of adapters
    present = {name: own[name].detach().clone() for name in own if name in stored}
    module.load_state_dict(own | stored)
    try:
        yield
    finally:
        module.load_state_dict(own | present)


def _best_checkpoint(trainer: L.Trainer) -> str | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return str(callback.best_model_path)
    return None
