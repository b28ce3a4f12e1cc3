"""User batches with all items that each user consumed in train."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.store import Corpus
from sidrec.settings import PositiveInt
from sidrec.training.numbered_batches import BatchNumber
from sidrec.training.row_data import RowDataModule, RowSchedule
from sidrec.types import Request


class UserBatch(NamedTuple):
    """User batch with all train items of each user, as a loss without sampling needs.

    Attributes:
        user_index: user_index of each user.
        positive_user: Row in ``user_index`` of each interaction; no interaction twice.
        positive_item: Its item_index.
    """

    user_index: Int[Tensor, " user"]
    positive_user: Int[Tensor, " positive"]
    positive_item: Int[Tensor, " positive"]


@dataclass(frozen=True)
class UserBatches(Dataset[UserBatch]):
    """User batches by number, for one rank.

    Attributes:
        schedule: Rows of ``users`` in each batch.
        rank: Rank of this process.
        users: user_index of all users with train interactions.
        starts: The items of user u are ``items[starts[u] : starts[u + 1]]``.
        items: item_index, sorted by user.
    """

    schedule: RowSchedule
    rank: int
    users: Int64[np.ndarray, " row"]
    starts: Int64[np.ndarray, " bound"]
    items: Int64[np.ndarray, " interaction"]

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, number: BatchNumber) -> UserBatch:
        rows = self.schedule.rows(number.step, epoch=number.epoch, rank=self.rank)
        users = self.users[rows]
        own = [np.unique(self.items[self.starts[u] : self.starts[u + 1]]) for u in users]
        return UserBatch(
            torch.from_numpy(users),
            torch.from_numpy(np.repeat(np.arange(len(users)), [len(part) for part in own])),
            torch.from_numpy(np.concatenate(own)),
        )


class UserDataModule(RowDataModule[UserBatch]):
    """Users of one corpus, each once an epoch.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Users per rank.
        seed: Seed of shuffles and dropout.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(
        self,
        corpus: str,
        *,
        batch_size: PositiveInt = 512,
        seed: int = 1234,
        num_workers: int = 0,
    ) -> None:
        super().__init__(corpus, batch_size, seed, num_workers)

    def lay_out(self, rank: int, world_size: int) -> UserBatches:
        """Return the training batches of a rank."""
        train = self.corpus.train_interactions()
        check_train_only(self.corpus, train, "matrix factorization")
        users = np.flatnonzero(np.diff(train.user_starts) > 0)
        starts, items = (
            np.asarray(column, np.int64) for column in (train.user_starts, train.item_index)
        )
        schedule = RowSchedule(len(users), self.batch_size, world_size, self.seed)
        return UserBatches(schedule, rank, users, starts, items)


def users_of(corpus: Corpus, requests: Sequence[Request]) -> Int[Tensor, " request"]:
    """Return the user_index of each recommendation request, -1 for unknown users.

    Users without a train interaction count as unknown, because training learns nothing about them.
    """
    train = corpus.train_interactions()
    known = np.flatnonzero(np.diff(train.user_starts) > 0)
    rows = corpus.timelines().user_starts[known]
    names = corpus.interactions.select(rows)["user_id"][:]
    index = dict(zip(names, known.tolist(), strict=True))
    return torch.tensor([index.get(one.request_id, -1) for one in requests], dtype=torch.long)
