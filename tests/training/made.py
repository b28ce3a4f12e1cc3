"""Batches that take their time, and a training over them."""

import os
import sys
import time
from pathlib import Path

import lightning as L
import torch

from sidrec.runs.callbacks import LastCheckpoint
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import STOP
from sidrec.runs.rank_failures import take_charge_of
from sidrec.training.numbered_batches import BatchLoader, BatchNumber, BatchNumberSampler, the_only
from sidrec.training.resumable_data import ResumableDataModule

NUM_BATCHES = 8


class HangingBatches:
    """Batches of one number; from number ``hang_at`` on a process sleeps.

    With ``errors`` the stderr of the processes goes to that file: they have that of the fork
    server, which an earlier test may have started.
    """

    def __init__(self, hang_at=NUM_BATCHES, errors=None):
        self.hang_at, self.errors = hang_at, errors

    def __len__(self):
        return NUM_BATCHES

    def __getitem__(self, number):
        if number.step >= self.hang_at:
            if self.errors is not None:
                os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            time.sleep(10_000)
        return torch.tensor([number.step, os.getpid()])


def loader_of(batches, **settings):
    sampler = BatchNumberSampler(len(batches), BatchNumber(0, 0))
    return BatchLoader(
        batches, batch_sampler=sampler, collate_fn=the_only, **({"num_workers": 2} | settings)
    )


class HangingData(ResumableDataModule):
    made_from = Path()

    def lay_out(self, rank, world_size):
        return HangingBatches(hang_at=4)

    def fixed_settings(self):
        return {"corpus": ""}


class OneWeight(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch):
        sys.stdout.write(f"{batch[1]}\n")  # the process that made the batch
        sys.stdout.flush()
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder):
    """Train until the loader processes hang, and listen to signals."""
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[LastCheckpoint(RunDirectory(Path(folder)), every_s=1e9)],
    )
    take_charge_of(trainer)
    with STOP.listening():
        trainer.fit(OneWeight(), datamodule=HangingData(num_workers=2))
