"""The training loader's parts: batches by number, and the number where an epoch goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import DataLoader, Dataset, Sampler

from sidrec.pairs.item_item import ItemItemPairs
from sidrec.pairs.query_item import QueryItemPairs
from sidrec.pairs.schedule import PairSchedule
from sidrec.pairs.tokens import TokenStore
from sidrec.run_directory.stopping import ignore_stop_signals
from sidrec.types import PairBatch

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


@dataclass(frozen=True, slots=True)
class PairBatches(Dataset[PairBatch]):
    """Batch by number, for one rank.

    Attributes:
        schedule: Which rows.
        rank: Of this process.
        query_item: None when the task is off.
        item_item: None when the task is off.
        query_tokens: Tokens of train queries; None when the task is off.
        item_tokens: Tokens of item texts.
        log_frequency: Per task, ln(probability that the sampler draws the item).
    """

    schedule: PairSchedule
    rank: int
    query_item: QueryItemPairs | None
    item_item: ItemItemPairs | None
    query_tokens: TokenStore | None
    item_tokens: TokenStore
    log_frequency: dict[str, Float32[np.ndarray, " item"]]

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, number: BatchNumber) -> PairBatch:
        task, rows = self.schedule.batch(number.step, epoch=number.epoch, rank=self.rank)
        pairs = self.query_item if task == "search" else self.item_item
        left_tokens = self.query_tokens if task == "search" else self.item_tokens
        if pairs is None or left_tokens is None:
            raise AssertionError(f"the schedule holds {task}, which is switched off")
        drawn = pairs.draw(rows, seed=self.schedule.seed, epoch=number.epoch)
        return PairBatch(
            task=task,
            left=left_tokens.gather(drawn.left),
            right=self.item_tokens.gather(drawn.right_item),
            right_item=torch.from_numpy(drawn.right_item),
            known_positives=torch.from_numpy(drawn.known_positives),
            right_log_frequency=torch.from_numpy(self.log_frequency[task][drawn.right_item]),
        )


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
