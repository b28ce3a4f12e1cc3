"""Batches by number: the sampler yields numbers, the dataset makes the batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Sampler

from sidrec.training.loader_processes import WatchedIterator, loader_settings

Batch = TypeVar("Batch")


class BatchNumber(NamedTuple):
    """Number of one batch; with seed, rank and sizes it decides the batch's rows."""

    epoch: int
    step: int


class BatchNumberSampler(Sampler[list[BatchNumber]]):
    """Sampler of the batch numbers of an epoch; a resumed epoch begins in the middle.

    Lightning calls ``set_epoch`` only on ``batch_sampler.sampler``, hence that attribute.

    Args:
        num_steps: Batches of a whole epoch; ``len`` returns it after a resume too.
        first: Batch at which training resumes; only its epoch begins at its step.
    """

    def __init__(self, num_steps: int, first: BatchNumber) -> None:
        self.num_steps, self.first, self.epoch = num_steps, first, first.epoch

    @property
    def sampler(self) -> "BatchNumberSampler":
        """Object whose ``set_epoch`` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
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

    The loader's state is empty, since Lightning would restore rank 0's state on every rank. The
    state of the data module holds the position.
    """

    def __init__(self, dataset: Any, *, num_workers: int, **settings: Any) -> None:  # noqa: ANN401
        processes = loader_settings(dataset) if num_workers else {}
        super().__init__(dataset, num_workers=num_workers, **(processes | settings))

    def _get_iterator(self) -> Any:  # noqa: ANN401
        return WatchedIterator(self) if self.num_workers else super()._get_iterator()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""
        del state_dict


def the_only(batches: list[Batch]) -> Batch:
    """Collate function: return the only batch of the list."""
    return batches[0]
