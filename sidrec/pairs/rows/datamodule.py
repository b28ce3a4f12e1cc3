"""What data modules over one kind of rows share: loaders, and where a resumed run goes on."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import lightning as L
from torch.utils.data import DataLoader

from sidrec.corpus.store import Corpus
from sidrec.distributed import rank_and_world_size
from sidrec.pairs.batches import BatchLoader, BatchNumber, PairBatchSampler, the_only
from sidrec.pairs.resume import first_batch_after, position_in
from sidrec.pairs.rows.schedule import RowSchedule

Batch = TypeVar("Batch", covariant=True)


@runtime_checkable
class RowBatches(Protocol[Batch]):
    """Batch by number, for one rank; a dataset that a loader takes."""

    @property
    def schedule(self) -> RowSchedule:
        """Which rows a batch holds."""

    def __getitem__(self, number: BatchNumber) -> Batch: ...


class RowDataModule(L.LightningDataModule, ABC, Generic[Batch]):
    """Rows of one corpus, each once an epoch; validation and test are one step each.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Rows per rank.
        seed: Of shuffles; dropout follows it too.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, corpus: str, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        self.corpus_folder, self.batch_size = Path(corpus), batch_size
        self.seed, self.num_workers = seed, num_workers
        self._first = BatchNumber(0, 0)
        self._loaded: Corpus | None = None
        self._batches: RowBatches[Batch] | None = None

    @abstractmethod
    def lay_out(self, rank: int, world_size: int) -> RowBatches[Batch]:
        """Return the training batches of a rank."""

    def other_settings(self) -> dict[str, Any]:
        """Return settings beside seed and sizes that decide the batches; plain types."""
        return {}

    @property
    def corpus(self) -> Corpus:
        """The corpus, loaded when first asked for."""
        if self._loaded is None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def batches(self) -> RowBatches[Batch]:
        """This rank's training batches, by number."""
        if self._batches is None:
            self._batches = self.lay_out(*rank_and_world_size())
        return self._batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.batches.schedule)

    def train_dataloader(self) -> BatchLoader[Batch]:
        """Return this rank's batches, from where a resumed run stopped."""
        return BatchLoader(
            self.batches,
            batch_sampler=PairBatchSampler(self.steps_per_epoch, self._first),
            collate_fn=the_only,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split: the model ranks the whole catalogue in it."""
        return DataLoader(["valid"], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split."""
        return DataLoader(["test"], batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands and what must not change while it runs."""
        if self.trainer is None or self._batches is None:
            return {}
        return position_in(
            self.trainer.fit_loop, steps_per_epoch=self.steps_per_epoch, fixed=self._fixed()
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on training where ``state_dict`` was taken; to evaluate, nothing has to match.

        Raises:
            ConfigError: If in the middle of an epoch a setting differs that decides its batches.
            DataError: If the corpus is another one.
        """
        if state_dict and (self.trainer is None or self.trainer.state.fn == "fit"):
            self._first = first_batch_after(
                state_dict, fixed=self._fixed(), corpus_folder=self.corpus_folder
            )

    def _fixed(self) -> dict[str, Any]:
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": schedule.num_rows,
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "seed": schedule.seed,
            **self.other_settings(),
        }
