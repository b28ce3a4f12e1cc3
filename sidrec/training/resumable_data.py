"""Data modules with numbered training batches, their loader, and the position of a resume."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import lightning as L

from sidrec.corpus.store import Corpus
from sidrec.distributed import rank_and_world_size
from sidrec.errors import ConfigError, DataError
from sidrec.training.numbered_batches import BatchLoader, BatchNumber, BatchNumberSampler, the_only


def position_in(
    fit_loop: Any,  # noqa: ANN401 (Lightning's)
    *,
    steps_per_epoch: int,
    fixed: dict[str, Any],
) -> dict[str, Any]:
    """Return the state of a data module: the next batch, and the settings fixed within an epoch.

    Args:
        fit_loop: ``trainer.fit_loop``. A batch counts as seen once it is processed.
        steps_per_epoch: Batches of a whole epoch.
        fixed: Settings that decide the batches, and the ``corpus`` fingerprint; plain types.
    """
    epoch = max(0, fit_loop.epoch_progress.current.ready - 1)
    step = fit_loop.epoch_loop.batch_progress.current.processed
    if step >= steps_per_epoch:
        epoch, step = epoch + 1, 0
    return {"epoch": epoch, "step": step, **fixed}


def refuse_late_validation(trainer: Any, *, batches_per_epoch: int) -> None:  # noqa: ANN401
    """Refuse a validation interval that is longer than an epoch: validation would never run.

    Args:
        trainer: Lightning's Trainer.
        batches_per_epoch: Batches of a whole epoch, on each rank.

    Raises:
        ConfigError: Names the interval, the number of batches, and what to set.
    """
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None:
        return
    number = min(batches_per_epoch, limit) if isinstance(limit, int) else batches_per_epoch
    if interval > number and trainer.limit_val_batches:
        raise ConfigError(
            f"trainer.val_check_interval ({interval}) exceeds the {number} batches of an epoch, so "
            "validation would never run; lower it, or set trainer.check_val_every_n_epoch to null, "
            "which counts the interval over epochs."
        )


def first_batch_after(
    state: dict[str, Any], *, fixed: dict[str, Any], corpus_folder: Path
) -> BatchNumber:
    """Return the first batch of a resumed run.

    Args:
        state: State from ``position_in``.
        fixed: Current settings that decide the batches.
        corpus_folder: Corpus directory, for the message.

    Raises:
        ConfigError: If a setting that decides the batches differs in the middle of an epoch.
        DataError: If the corpus is a different one.
    """
    if state["corpus"] != fixed["corpus"]:
        raise DataError(
            f"{corpus_folder} is not the corpus of this run; give that one, or a new --run_dir."
        )
    names = [name for name in {**state, **fixed} if name not in ("epoch", "step")]
    changed = [name for name in names if state.get(name) != fixed.get(name)]
    if changed and state["step"] > 0:
        raise ConfigError(
            "This run stopped in the middle of an epoch; to resume it keep "
            + ", ".join(f"{name} {state.get(name)} (now {fixed.get(name)})" for name in changed)
            + "."
        )
    return BatchNumber(state["epoch"], state["step"])


@runtime_checkable
class NumberedBatches(Protocol):
    """Dataset of batches by number, for one rank, as a loader takes it."""

    def __len__(self) -> int:
        """Return the batches of an epoch, the same on every rank."""

    def __getitem__(self, number: BatchNumber) -> Any:  # noqa: ANN401
        """Make a batch; only its number, the seed and the rank decide its content."""


Batches = TypeVar("Batches", bound=NumberedBatches)


class ResumableDataModule(L.LightningDataModule, ABC, Generic[Batches]):
    """Data module with numbered training batches; a resumed run starts at the next batch.

    Args:
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers
        self._first = BatchNumber(0, 0)
        self._batches: Batches | None = None

    @abstractmethod
    def lay_out(self, rank: int, world_size: int) -> Batches:
        """Return the training batches of a rank."""

    @abstractmethod
    def fixed_settings(self) -> dict[str, Any]:
        """Return the corpus fingerprint and the settings that decide the batches; plain types."""

    @property
    @abstractmethod
    def made_from(self) -> Path:
        """Folder from which the batches are made, for messages."""

    def ranks(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks that share the batches."""
        return rank_and_world_size()

    @property
    def batches(self) -> Batches:
        """Training batches of this rank, laid out on first use."""
        if self._batches is None:
            self._batches = self.lay_out(*self.ranks())
        return self._batches

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        return len(self.batches)

    def train_dataloader(self) -> BatchLoader[Any]:
        """Return the loader of this rank's batches; a resumed run begins at its next batch.

        Raises:
            ConfigError: If an epoch is shorter than the trainer's interval of validation.
        """
        if self.trainer is not None:
            refuse_late_validation(self.trainer, batches_per_epoch=self.steps_per_epoch)
        return BatchLoader(
            self.batches,
            batch_sampler=BatchNumberSampler(self.steps_per_epoch, self._first),
            collate_fn=the_only,
            num_workers=self.num_workers,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and the settings that must not change within it."""
        if self.trainer is None or self._batches is None:
            return {}
        return position_in(
            self.trainer.fit_loop,
            steps_per_epoch=self.steps_per_epoch,
            fixed=self.fixed_settings(),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume training where ``state_dict`` was taken; evaluation requires no match.

        Raises:
            ConfigError: If a setting that decides the batches differs in the middle of an epoch.
            DataError: If the corpus is a different one.
        """
        is_training = self.trainer is None or self.trainer.state.fn == "fit"
        if state_dict and is_training:
            self._first = first_batch_after(
                state_dict, fixed=self.fixed_settings(), corpus_folder=self.made_from
            )


class CorpusDataModule(ResumableDataModule[Batches], Generic[Batches]):
    """Resumable data module over one corpus.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, corpus: str, num_workers: int) -> None:
        super().__init__(num_workers)
        self.corpus_folder = Path(corpus)
        self._loaded: Corpus | None = None

    @property
    def corpus(self) -> Corpus:
        """Corpus, loaded on first use."""
        if self._loaded is None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def made_from(self) -> Path:
        """Corpus directory."""
        return self.corpus_folder
