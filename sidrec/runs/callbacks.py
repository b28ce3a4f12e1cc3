"""Callbacks of every training run: manifest, newest checkpoint, and progress lines."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from sidrec.console import say
from sidrec.distributed import rank_and_world_size, read_later, sum_over_ranks
from sidrec.files import atomic_file
from sidrec.runs.checkpoints import keep_previous, load_file, write_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.runs.lightning_private import validates_after_this_batch
from sidrec.runs.lock import refuse_if_lost
from sidrec.runs.preemption import STOP, Preempted


def csv_logger(run: RunDirectory) -> dict[str, Any]:
    """Return CSV logger settings with a new folder in ``logs/``, so a resume keeps old logs."""
    return {
        "class_path": f"{CSVLogger.__module__}.{CSVLogger.__qualname__}",
        "init_args": {"save_dir": str(run.root), "name": run.logs.name},
    }


def name_curve(loggers: Any, log_id: str) -> None:  # noqa: ANN401 (jsonargparse's namespaces)
    """Set the run's own id in W&B's logger, unless one is given, so a resume continues its curve.

    Args:
        loggers: Content of ``trainer.logger``: settings of one or several loggers, or none.
        log_id: Id from the run directory.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        is_wandb = str(getattr(logger, "class_path", "")).endswith(".WandbLogger")
        if is_wandb and logger.init_args.id is None and "WANDB_RUN_ID" not in os.environ:
            logger.init_args.id = log_id


_LINE_EVERY_S = 10.0
_SAVE_EVERY_S = 60.0
_SAVING_SHARE = 0.05


class RunManifest(L.Callback):
    """Callback that keeps ``manifest.json`` of the run directory up to date.

    It writes nothing before model and data are known to fit together.

    Args:
        run: Run directory; only rank 0 writes.
        config: Text of ``config.yaml``.
        log_id: Id of the run in its loggers.
    """

    def __init__(self, run: RunDirectory, config: str, log_id: str = "") -> None:
        self.run, self.config, self.log_id, self.begun = run, config, log_id, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record model, data and state before the first step."""
        corpus = getattr(trainer.datamodule, "corpus", None)
        self.begun = True
        if trainer.is_global_zero and not trainer.fast_dev_run:
            with atomic_file(self.run.config) as temporary:
                temporary.write_text(self.config)
        self._write(
            trainer,
            state="running",
            stage=getattr(pl_module, "stage", "unknown"),
            corpus_fingerprint=getattr(corpus, "fingerprint", None),
            world_size=rank_and_world_size()[1],
            precision=str(trainer.precision),
            log_id=self.log_id,
        )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Record why the run stopped: Ctrl-C, preemption or an error."""
        del pl_module
        if isinstance(exception, KeyboardInterrupt):
            self._write(trainer, state="interrupted", at_step=trainer.global_step)
        elif isinstance(exception, Preempted) or STOP.name is not None:
            self._write(trainer, state="preempted", at_step=trainer.global_step)
        else:
            self._write(trainer, state="failed", error=type(exception).__name__)

    def _write(self, trainer: L.Trainer, **facts: Any) -> None:  # noqa: ANN401
        if self.begun and trainer.is_global_zero and not trainer.fast_dev_run:
            refuse_if_lost()
            self.run.write_manifest(**facts)


class LastCheckpoint(L.Callback):
    """Callback that keeps the newest state in ``checkpoints/last.ckpt``.

    It saves at intervals, on a stop, and at the end. The first Ctrl-C lets the step finish, saves,
    and stops; a second one stops at once. SIGTERM and SIGUSR1, on any rank, do the same on all
    ranks, see ``StopRequest``. It never saves while gradients accumulate, nor between a step and
    its validation, which Lightning would skip on resume, and so choose another best checkpoint.

    Args:
        run: Run directory.
        every_s: Seconds between two checkpoints, by rank 0's clock. None: at least 60, and long
            enough to keep the time for saving at 5 % or less.
    """

    def __init__(self, run: RunDirectory, *, every_s: float | None = None) -> None:
        self.run, self.every_s = run, every_s
        self.save_took_s = 0.0
        self.asked_to_stop = False
        self._votes: Callable[[], list[int]] = lambda: [0, 0, 0]  # of the step before
        self._handler_before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and handle Ctrl-C."""
        del trainer, pl_module
        self.saved_at, self._votes = time.monotonic(), lambda: [0, 0, 0]
        STOP.wait_for_step()
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._stop_after_this_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *unused: Any,  # noqa: ANN401
    ) -> None:
        """Save when a checkpoint is due or a stop is requested; all ranks at the same step.

        Raises:
            KeyboardInterrupt: After saving, if Ctrl-C was pressed.
            Preempted: After saving, if the run is preempted.
        """
        del pl_module, unused
        if not _may_save(trainer):
            return
        least_s = max(_SAVE_EVERY_S, self.save_took_s * (1 / _SAVING_SHARE - 1))
        every_s = least_s if self.every_s is None else self.every_s
        is_time = time.monotonic() - self.saved_at >= every_s
        wishes = [is_time and trainer.is_global_zero, self.asked_to_stop, STOP.name is not None]
        save, person, machine = self._agreed(wishes, trainer)
        if save or person or machine:
            self._save(trainer)
        if person:
            raise KeyboardInterrupt
        if machine:
            raise Preempted(STOP.name or "another rank")

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Count the present epoch as begun; the data module reads its position from that count.

        Lightning does not count the first epoch after a resume at the end of an epoch.
        """
        del pl_module, batch, batch_idx
        count = trainer.fit_loop.epoch_progress.current
        count.ready = count.processed + 1

    def _agreed(self, wishes: list[bool], trainer: L.Trainer) -> list[bool]:
        """Return what some rank wished: now with one process, at the step before with several.

        So no rank waits for the others, nor for its GPU to finish the step. The last step of an
        epoch or a training is followed by no other one soon, and its own votes count as well.
        """
        if rank_and_world_size()[1] == 1:
            return wishes
        votes = torch.tensor(wishes, dtype=torch.int32, device=trainer.strategy.root_device)
        before, self._votes = self._votes, read_later(sum_over_ranks(votes))
        counts = before()
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_last or trainer.global_step == trainer.max_steps:
            counts = [a + b for a, b in zip(counts, self._votes(), strict=True)]
        return [count > 0 for count in counts]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state of the training."""
        del pl_module
        self._save(trainer)
        self._listen_no_more()
        STOP.wait_no_more()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a model that took no step (``max_steps: 0``), such as a frozen encoder."""
        del pl_module
        if trainer.global_step == 0 and not self.run.last_checkpoint.exists():
            self._save(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop handling Ctrl-C; everything to save is saved already."""
        del trainer, pl_module, exception
        self._listen_no_more()
        STOP.waits_for_step = False

    def _stop_after_this_step(self, *unused: Any) -> None:  # noqa: ANN401
        del unused
        self.asked_to_stop = True
        self._listen_no_more()
        say("stopping after this step; Ctrl-C again stops at once")

    def _listen_no_more(self) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)
            self._handler_before = None

    def _save(self, trainer: L.Trainer) -> None:
        began = time.monotonic()
        if not trainer.fast_dev_run:
            if trainer.is_global_zero:
                refuse_if_lost()
                keep_previous(self.run)
            trainer.save_checkpoint(self.run.last_checkpoint)
        self.saved_at = time.monotonic()
        self.save_took_s = self.saved_at - began


def _may_save(trainer: L.Trainer) -> bool:
    """Return whether a resume from the current state does the same as continuing."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if progress.current.ready % trainer.accumulate_grad_batches and not progress.is_last_batch:
        return False
    validates_now = validates_after_this_batch(trainer)
    return not validates_now or trainer.val_check_batch == 1  # 1: no later state avoids validation


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoint input and output: atomic writes, and reads that execute no code."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401
    ) -> None:
        """Write to a temporary file beside the target, flush it to disk, rename it."""
        del storage_options
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",  # noqa: ANN401
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read only tensors and plain types, whatever the caller asks for."""
        del weights_only
        return load_file(Path(path), map_location=map_location)


class LineProgress(L.Callback):
    """Progress lines for logs: one line every ten seconds at most, with the remaining time."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self.started = self.last = time.monotonic()
        self.first_step = trainer.global_step
        self.total = total_steps(trainer)
        if trainer.is_global_zero:
            say(f"training: step {self._step(trainer)}")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *unused: Any,  # noqa: ANN401
    ) -> None:
        """Print the step, the logged figures and the remaining time."""
        del pl_module, unused
        now = time.monotonic()
        done = trainer.global_step - self.first_step
        if not trainer.is_global_zero or now - self.last < _LINE_EVERY_S or done < 1:
            return
        self.last = now
        left = ""
        if self.total is not None:
            left_s = (now - self.started) / done * (self.total - trainer.global_step)
            left = f", {left_s:.0f} s left"
        figures = _figures(trainer, prefix="train/")
        say(f"training: step {self._step(trainer)}{left}{figures}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the validation figures."""
        del pl_module
        if trainer.is_global_zero and not trainer.sanity_checking:
            say(f"validation: step {trainer.global_step:,}{_figures(trainer, prefix='val/')}")

    def _step(self, trainer: L.Trainer) -> str:
        end = "" if self.total is None else f" of {self.total:,}"
        return f"{trainer.global_step:,}{end}"


class TerminalProgress(RichProgressBar):
    """Progress bar that reads the figures once a second: each read waits for the GPU."""

    _read_at = -math.inf
    _figures: dict[str, int | str | float | dict[str, float]]

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the figures beside the bar."""
        if time.monotonic() - self._read_at >= 1:
            self._figures = super().get_metrics(trainer, pl_module)
            self._read_at = time.monotonic()
        return self._figures


def total_steps(trainer: L.Trainer) -> int | None:
    """Return the number of optimizer steps of the whole fit; None without a step limit.

    It counts the loader itself: ``trainer.estimated_stepping_batches`` may set loaders up too early
    and lose their state (Lightning issue 20550).
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs and trainer.max_epochs > 0:
        steps = math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches)
        limits.append(steps * trainer.max_epochs)
    return min(limits, default=None)


def _figures(trainer: L.Trainer, *, prefix: str) -> str:
    chosen = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
    return "".join(f", {key} {float(value):.4f}" for key, value in sorted(chosen.items()))
