"""Where an epoch stands, so that an interrupted run goes on with the batch that comes next."""

from pathlib import Path
from typing import Any

from sidrec.errors import ConfigError, DataError
from sidrec.pairs.batches import BatchNumber


def position_in(
    fit_loop: Any,  # noqa: ANN401 (Lightning's)
    *,
    steps_per_epoch: int,
    fixed: dict[str, Any],
) -> dict[str, Any]:
    """Return the state of a data module: the next batch, and what must not change in mid-epoch.

    Args:
        fit_loop: ``trainer.fit_loop``. Its batches count as seen once they were processed.
        steps_per_epoch: Batches of a whole epoch.
        fixed: Settings that decide the batches, and the ``corpus`` fingerprint; plain types.
    """
    epoch = max(0, fit_loop.epoch_progress.current.ready - 1)
    step = fit_loop.epoch_loop.batch_progress.current.processed
    if step >= steps_per_epoch:
        epoch, step = epoch + 1, 0
    return {"epoch": epoch, "step": step, **fixed}


def first_batch_after(
    state: dict[str, Any], *, fixed: dict[str, Any], corpus_folder: Path
) -> BatchNumber:
    """Return the batch with which a resumed run begins.

    Args:
        state: From ``position_in``.
        fixed: As the settings are now.
        corpus_folder: For the message.

    Raises:
        ConfigError: If in the middle of an epoch a setting differs that decides its batches.
        DataError: If the corpus is another one.
    """
    if state["corpus"] != fixed["corpus"]:
        raise DataError(
            f"{corpus_folder} is not the corpus that this run began with; "
            "give that one, or begin a new run directory."
        )
    changed = [name for name, value in fixed.items() if state[name] != value]
    if changed and state["step"] > 0:
        raise ConfigError(
            "This run stopped in the middle of an epoch; to resume it keep "
            + ", ".join(f"{name} {state[name]} (now {fixed[name]})" for name in changed)
            + "."
        )
    return BatchNumber(state["epoch"], state["step"])
