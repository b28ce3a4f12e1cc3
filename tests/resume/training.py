"""A training that is told to stop, goes on, and keeps a record of all that it did."""

import hashlib
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

import lightning as L
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from sidrec.distributed import wait_for_all_ranks
from sidrec.runs.callbacks import LastCheckpoint
from sidrec.runs.checkpoints import newest_whole_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import STOP, Preempted
from sidrec.runs.rank_failures import take_charge_of
from tests.resume.made import made

NUM_EPOCHS = 2


@dataclass
class Record:
    """What one rank did and where it ended; two equal records are one training.

    Attributes:
        batches: Epoch, number and content of every batch, in order.
        validations: After which step, with which figures.
        end: Weights, state of optimizer and schedule, counts.
        num_resumes: How often it went on from a checkpoint.
    """

    batches: list = field(default_factory=list)
    validations: list = field(default_factory=list)
    end: dict = field(default_factory=dict)
    num_resumes: int = 0

    def difference_from(self, other):
        """Return the first thing that differs, or None."""
        for name in ("batches", "validations"):
            if getattr(self, name) != getattr(other, name):
                return name
        return difference(self.end, other.end)


def difference(one, other, place=""):
    """Return where two trees of tensors and plain values differ, to the bit, or None."""
    if isinstance(one, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else place
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f"{place} keys"
        inside = (difference(one[key], other[key], f"{place}/{key}") for key in one)
        return next((found for found in inside if found), None)
    if isinstance(one, list | tuple):
        return difference(dict(enumerate(one)), dict(enumerate(other)), place)
    return None if one == other else place


class Witness(L.Callback):
    """Keep the record."""

    def __init__(self, record):
        self.record = record

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.record.batches.append((trainer.current_epoch, batch_idx, digest(batch)))

    def on_validation_end(self, trainer, pl_module):
        figures = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.record.validations.append((trainer.global_step, figures))

    def on_train_end(self, trainer, pl_module):
        schedule = trainer.lr_scheduler_configs[0].scheduler
        self.record.end = {
            "weights": {k: v.clone() for k, v in pl_module.state_dict().items()},
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": {"last_lr": schedule.get_last_lr(), "steps": schedule.last_epoch},
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
        }


class Signal(L.Callback):
    """Let the machine ask the last rank to stop, in the midst of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        is_last_rank = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step == self.step - 1 and is_last_rank:
            signal.raise_signal(signal.SIGUSR1)


def digest(batch):
    """Return a hash of everything that a batch holds."""
    found = hashlib.sha256()
    for part in _parts(batch):
        whole = (
            part.cpu().numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode()
        )
        found.update(whole + b";")
    return found.hexdigest()


def _parts(batch):
    if isinstance(batch, Iterable) and not isinstance(batch, str | torch.Tensor):
        for part in batch:
            yield from _parts(part)
    else:
        yield batch


def train(stage, tiny, folder, *, stops=(), num_ranks=1, num_workers=0, warmup=False, **settings):
    """Train two epochs, told to stop at the end of each of some steps; return this rank's record.

    Every part is what another start of the command makes: a new module, data module and trainer,
    and the newest checkpoint of the run directory.
    """
    run, record = RunDirectory(folder), Record()
    for stop in (*stops, None):
        choice = {"num_ranks": num_ranks, "num_workers": num_workers, "warmup": warmup}
        torch.manual_seed(1 if stop == next(iter(stops), None) else 2)  # weights are the first's
        module, data = made(stage, tiny, **choice)
        trainer = _trainer(run, record, stop, num_ranks, settings)
        if num_ranks > 1:
            wait_for_all_ranks()  # rank 0 may still be putting the checkpoint in its place
        newest = newest_whole_checkpoint(run)
        record.num_resumes += newest is not None
        try:
            with STOP.listening():
                trainer.fit(module, datamodule=data, ckpt_path=newest, weights_only=True)
        except Preempted:
            assert stop is not None
        else:
            assert stop is None, "the signal came to nothing"
    return record


def _trainer(run, record, stop, num_ranks, settings):
    ranks = {"strategy": "ddp", "plugins": [TorchElasticEnvironment()]} if num_ranks > 1 else {}
    callbacks = [Witness(record), LastCheckpoint(run, every_s=1e9)]
    if stop is not None:
        callbacks.insert(0, Signal(stop))
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": num_ranks,
            "max_epochs": NUM_EPOCHS,
            "default_root_dir": str(run.root),
            "callbacks": callbacks,
            "val_check_interval": 3,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            **ranks,
            **settings,
        }
    )
    take_charge_of(trainer)
    return trainer
