"""What stops a run: a person, the machine, an error, a full disk."""

import atexit
import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lightning as L
from torch.distributed import distributed_c10d

from tests.patience import patient

_REASONS = {"person": KeyboardInterrupt, "error": FloatingPointError}


class StopAt(L.Callback):
    """Raise at the end of a step; a configuration names it once SIDREC_ALLOW_IMPORTS allows it."""

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        if self.reason == "machine":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise _REASONS[self.reason](self.reason)


@contextmanager
def files_up_to(num_bytes):
    """As on a disk with so much room: the system itself refuses to write longer files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class SignalIn(L.Callback):
    """Send this process a signal in one of Lightning's hooks, on one rank."""

    def __init__(self, hook: str, signal_name: str, rank: int = 0) -> None:
        def send(trainer, *unused, **also_unused):
            if trainer.global_rank == rank:
                os.kill(os.getpid(), signal.Signals[signal_name])
                time.sleep(0.01)  # let the handler run here

        setattr(self, hook, send)


class Fail(L.Callback):
    """Fail on one rank at the end of a step: ``raise``, ``hang``, or ``killed``."""

    def __init__(self, step: int, rank: int, how: str) -> None:
        self.step, self.rank, self.how = step, rank, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.how == "hang" and trainer.global_step == self.step:  # nobody is slow any more
            limit = timedelta(seconds=patient(6))
            distributed_c10d._set_pg_timeout(limit, distributed_c10d.GroupMember.WORLD)
        if (trainer.global_step, trainer.global_rank) != (self.step, self.rank):
            return
        (Path(trainer.default_root_dir) / "failed").touch()  # its time is the test's start
        if self.how == "raise":
            raise ZeroDivisionError("made to fail")
        if self.how == "hang":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)


class KillWorker(L.Callback):
    """End a process that makes batches, as the system does when memory is short."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            for child in multiprocessing.active_children():  # batches that wait would hide one
                child.kill()
            time.sleep(patient(1.0))  # for the news to come


class Slow(L.Callback):
    """Make every step last so long that a test can disturb it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)


class Linger(L.Callback):
    """Take seconds to exit on every rank but 0: some before the exit handlers, some in them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self, trainer, pl_module, stage):
        if not trainer.is_global_zero:
            threading.Thread(target=self._wait).start()  # the interpreter joins it at its end
            atexit.register(time.sleep, self.seconds)

    def _wait(self):
        threading.main_thread().join()
        time.sleep(self.seconds)
