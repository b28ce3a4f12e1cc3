"""Loggers that go on where a run goes on."""

import os
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from sidrec.run_directory import RunDirectory


def csv_logger(run: RunDirectory) -> dict[str, Any]:
    """Return settings of a logger with a new folder in ``logs/``: a resumed run loses no log."""
    return {
        "class_path": f"{CSVLogger.__module__}.{CSVLogger.__qualname__}",
        "init_args": {"save_dir": str(run.root), "name": run.logs.name},
    }


def name_curve(loggers: Any, log_id: str) -> None:  # noqa: ANN401 (jsonargparse's namespaces)
    """Give W&B's logger the run's own id, unless somebody chose one: its curve goes on.

    Args:
        loggers: What ``trainer.logger`` holds: settings of one or several loggers, or none.
        log_id: From the run directory.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        is_wandb = str(getattr(logger, "class_path", "")).endswith(".WandbLogger")
        if is_wandb and logger.init_args.id is None and "WANDB_RUN_ID" not in os.environ:
            logger.init_args.id = log_id
