"""Batches by number: a sampler yields numbers, the data set makes the batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Sampler

from sidrec.training.loader_processes import WatchedIterator, loader_settings

Batch = TypeVar("Batch")


class BatchNumber(NamedTuple):
    """Names one batch; with seed, rank and sizes it decides its rows."""

    epoch: int
    step: int


class BatchNumberSampler(Sampler[list[BatchNumber]]):
    """Yield the numbers of an epoch's batches; begins in the middle after a resume.

    Lightning calls ``set_epoch`` only on ``batch_sampler.sampler``, hence that attribute.

    Args:
        num_steps: Batches of a whole epoch; ``len`` stays this after a resume too.
        first: Where training goes on; its epoch alone begins at its step.
    """

    def __init__(self, num_steps: int, first: BatchNumber) -> None:
        self.num_steps, self.first, self.epoch = num_steps, first, first.epoch

    @property
    def sampler(self) -> "BatchNumberSampler":
        """The object that Lightning tells the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration shall yield."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[BatchNumber]]:
        epoch = self.epoch
        begin = self.first.step if epoch == self.first.epoch else 0
        for step in range(begin, self.num_steps):
            yield [BatchNumber(epoch, step)]


class BatchLoader(DataLoader[Batch]):
    """Loader of whole batches that Lightning can resume.

    Its state is empty: Lightning would give rank 0's to every rank. The position is part of the
    state of the data module.
    """

    def __init__(self, dataset: Any, *, num_workers: int, **settings: Any) -> None:  # noqa: ANN401
        processes = loader_settings(dataset) if num_workers else {}
        super().__init__(dataset, num_workers=num_workers, **(processes | settings))

    def _get_iterator(self) -> Any:  # noqa: ANN401
        return WatchedIterator(self) if self.num_workers else super()._get_iterator()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""
        del state_dict


def the_only(batches: list[Batch]) -> Batch:
    """Collate: a batch is made whole, so the list holds one."""
    return batches[0]
