"""What data modules over one kind of rows share."""

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch.utils.data import DataLoader

from sidrec.pairs.batches import BatchNumber
from sidrec.pairs.resumable.datamodule import CorpusDataModule
from sidrec.pairs.rows.schedule import RowSchedule

Batch = TypeVar("Batch", covariant=True)


@runtime_checkable
class RowBatches(Protocol[Batch]):
    """Batch by number, for one rank; a dataset that a loader takes."""

    @property
    def schedule(self) -> RowSchedule:
        """Which rows a batch holds."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: BatchNumber) -> Batch: ...


class RowDataModule(CorpusDataModule[RowBatches[Batch]], Generic[Batch]):
    """Rows of one corpus, each once an epoch; validation and test are one step each.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Rows per rank.
        seed: Of shuffles; dropout follows it too.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, corpus: str, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(corpus, num_workers)
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def lay_out(self, rank: int, world_size: int) -> RowBatches[Batch]:
        """Return the training batches of a rank."""

    def other_settings(self) -> dict[str, Any]:
        """Return settings beside seed and sizes that decide the batches; plain types."""
        return {}

    def val_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split: the model ranks the whole catalogue in it."""
        return DataLoader(["valid"], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split."""
        return DataLoader(["test"], batch_size=None)  # type: ignore[arg-type]

    def fixed_settings(self) -> dict[str, Any]:
        """Return what decides the batches."""
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": schedule.num_rows,
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "seed": schedule.seed,
            **self.other_settings(),
        }
