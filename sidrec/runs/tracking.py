"""Logging beside losses: provenance, speed, gradient norm and artifacts of a training."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sidrec.distributed import sum_over_ranks
from sidrec.files import read_json
from sidrec.runs.directory import RunDirectory

_PROVENANCE = ("stage", "corpus_fingerprint", "git_revision", "versions", "world_size", "precision")
_SUMMARIES = {"val/*": "max", "train/*": "min", "ids/*": "last"}


class Tracking(L.Callback):
    """Callback that logs configuration, learning rate, gradient norm, examples per second, files.

    It works with all of Lightning's loggers; summaries and artifacts are for Weights & Biases only.
    It logs figures every ``trainer.log_every_n_steps`` steps. Figures of a step are from before its
    update, and the gradient norm is from before clipping. With each validation it logs
    ``speed/processor_s``: processor seconds of rank 0's process, from its start and over resumes,
    without loader processes.

    Args:
        run: Run directory with its manifest; only rank 0 logs.
        config: Resolved configuration.
        upload: Whether to log ``config.yaml`` and the Semantic-ID bundle as artifacts.
    """

    def __init__(self, run: RunDirectory, config: dict[str, Any], *, upload: bool = False) -> None:
        self.run, self.config, self.upload = run, config, upload
        self._rows, self._since, self._spent_before = 0, 0.0, 0.0

    def state_dict(self) -> dict[str, float]:
        """Return the processor seconds so far, for a checkpoint."""
        return {"processor_s": self._spent_before + time.process_time()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continue to count where a checkpoint was written."""
        self._spent_before = state_dict["processor_s"] - time.process_time()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the provenance of the run, and how W&B summarizes its curves."""
        del pl_module
        if not (trainer.is_global_zero and self.run.manifest.exists()):
            return
        manifest = read_json(self.run.manifest)
        provenance = {key: manifest.get(key) for key in _PROVENANCE}
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": self.config, "provenance": provenance})
            if isinstance(logger, WandbLogger):
                for pattern, summary in _SUMMARIES.items():
                    logger.experiment.define_metric(
                        pattern, summary=summary, step_metric="trainer/global_step"
                    )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._rows, self._since = 0, time.monotonic()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log learning rate and gradient norm."""
        is_sharded = isinstance(trainer.strategy, FSDPStrategy)
        if not _logs_now(trainer) or not (trainer.is_global_zero or is_sharded):
            return
        gradients = [one.grad for one in pl_module.parameters() if one.grad is not None]
        none = torch.zeros((), device=trainer.strategy.root_device)
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else none
        if is_sharded:  # each rank has the gradients of its shards
            norm = sum_over_ranks(norm.square()).sqrt()
        if trainer.is_global_zero:
            rate = float(optimizer.param_groups[0]["lr"])
            _log(trainer, {"optimizer/learning_rate": rate, "optimizer/gradient_norm": float(norm)})

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Log examples per second of all ranks since the last call that logged."""
        del pl_module, outputs, batch_idx
        self._rows += _num_rows(batch) * trainer.world_size
        if _logs_now(trainer):
            now = time.monotonic()
            speed = self._rows / max(now - self._since, 1e-9)
            self._rows, self._since = 0, now
            if trainer.is_global_zero:
                _log(trainer, {"speed/examples_per_s": speed}, step=trainer.global_step - 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        del trainer, pl_module
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again; log the processor time."""
        del pl_module
        self._since += time.monotonic() - self._paused
        if trainer.is_global_zero and not trainer.sanity_checking:
            _log(
                trainer,
                {"speed/processor_s": self.state_dict()["processor_s"]},
                step=trainer.global_step - 1,
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the artifacts if requested; callbacks that make Semantic IDs run before this one."""
        del pl_module
        if not (self.upload and trainer.is_global_zero):
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_artifact(logger, self.run.config, "configuration")
                if self.run.semantic_ids.is_dir():
                    _log_artifact(logger, self.run.semantic_ids, "semantic_ids")


def _logs_now(trainer: L.Trainer) -> bool:
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0)


def _log(trainer: L.Trainer, figures: dict[str, float], *, step: int | None = None) -> None:
    known = {key: value for key, value in figures.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(known, step=trainer.global_step if step is None else step)


def _log_artifact(logger: Logger, path: Path, kind: str) -> None:
    run: Any = logger.experiment
    run.log_artifact(str(path), name=f"{kind}-{run.id}", type=kind)


def _num_rows(batch: Any) -> int:  # noqa: ANN401
    """Return the length of a batch's first tensor."""
    lengths = (len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return next(lengths, 0)
