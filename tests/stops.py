"""A callback that stops training as a person, the machine or an error would."""

import os
import signal

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
