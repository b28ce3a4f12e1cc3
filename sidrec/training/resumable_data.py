"""Data modules whose training batches are made by number: their loader, and where a run goes on."""

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


@runtime_checkable
class NumberedBatches(Protocol):
    """Batch by number, for one rank; a dataset that a loader takes."""

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""

    def __getitem__(self, number: BatchNumber) -> Any:  # noqa: ANN401
        """Make a batch; its number, the seed and the rank alone decide what it holds."""


Batches = TypeVar("Batches", bound=NumberedBatches)


class ResumableDataModule(L.LightningDataModule, ABC, Generic[Batches]):
    """Training batches by number; a stopped run goes on with the batch that comes next.

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
        """Return what decides the batches, the ``corpus`` fingerprint with it; plain types."""

    @property
    @abstractmethod
    def made_from(self) -> Path:
        """Folder that the batches are made from, for messages."""

    def ranks(self) -> tuple[int, int]:
        """Return this process's rank, and how many share the batches."""
        return rank_and_world_size()

    @property
    def batches(self) -> Batches:
        """This rank's training batches, laid out when first asked for."""
        if self._batches is None:
            self._batches = self.lay_out(*self.ranks())
        return self._batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.batches)

    def train_dataloader(self) -> BatchLoader[Any]:
        """Return this rank's batches, from where a resumed run stopped."""
        return BatchLoader(
            self.batches,
            batch_sampler=BatchNumberSampler(self.steps_per_epoch, self._first),
            collate_fn=the_only,
            num_workers=self.num_workers,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands and what must not change while it runs."""
        if self.trainer is None or self._batches is None:
            return {}
        return position_in(
            self.trainer.fit_loop,
            steps_per_epoch=self.steps_per_epoch,
            fixed=self.fixed_settings(),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on training where ``state_dict`` was taken; to evaluate, nothing has to match.

        Raises:
            ConfigError: If in the middle of an epoch a setting differs that decides its batches.
            DataError: If the corpus is another one.
        """
        is_training = self.trainer is None or self.trainer.state.fn == "fit"
        if state_dict and is_training:
            self._first = first_batch_after(
                state_dict, fixed=self.fixed_settings(), corpus_folder=self.made_from
            )


class CorpusDataModule(ResumableDataModule[Batches], Generic[Batches]):
    """The same, made from one corpus.

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
        """The corpus, loaded when first asked for."""
        if self._loaded is None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def made_from(self) -> Path:
        """The corpus directory."""
        return self.corpus_folder
