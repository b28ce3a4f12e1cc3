"""Private names of Lightning that have no public counterpart, in one place.

``tests/runs/test_lightning_private.py`` says which of them a new release has changed.
"""

import subprocess
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers import subprocess_script

PRIVATE_METHODS_OF_CLI = ("_instantiate_trainer", "_parser", "_run_subcommand")  # sidrec.cli.train


def disable_signal_handlers(trainer: L.Trainer) -> None:
    """Keep a trainer from installing its own signal handlers."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def set_process_observer(watch: Callable[[list["subprocess.Popen[Any]"]], None]) -> None:
    """Replace the function that watches the processes that Lightning launches."""
    subprocess_script._launch_process_observer = watch


def validates_after_this_batch(trainer: L.Trainer) -> bool:
    """Return whether validation follows the current batch; asked at its end."""
    fit_loop = trainer.fit_loop
    return bool(fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher))


def uses_distributed_sampler(trainer: L.Trainer) -> bool:
    """Return the trainer's argument ``use_distributed_sampler``."""
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def is_attached(module: L.LightningModule) -> bool:
    """Return whether a module has a trainer; ``module.trainer`` raises where it has none."""
    return module._trainer is not None
