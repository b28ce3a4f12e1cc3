"""What stops a run: a person, the machine, an error, a full disk."""

import os
import resource
import signal
from contextlib import contextmanager

import lightning as L

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
