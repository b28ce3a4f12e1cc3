"""Batches by number: a sampler yields numbers, the data set makes the batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Sampler

from sidrec.runs.preemption import ignore_stop_signals

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
    """A loader of whole batches that tells Lightning it can be resumed.

    Its processes leave SIGTERM and SIGUSR1 to the training process, which needs them for its last
    step. Its state is empty: Lightning would hand rank 0's to every rank. The position stands in
    the state of the data module.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **(settings | {"worker_init_fn": ignore_stop_signals}))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""
        del state_dict


def the_only(batches: list[Batch]) -> Batch:
    """Collate: a batch is made whole, so the list holds one."""
    return batches[0]
