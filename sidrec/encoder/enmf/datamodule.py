"""Batches of users with all that they consumed in train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidrec.corpus.leakage import check_train_only
from sidrec.corpus.store import Corpus
from sidrec.distributed import rank_and_world_size
from sidrec.pairs.batches import BatchLoader, BatchNumber, PairBatchSampler, the_only
from sidrec.pairs.resume import first_batch_after, position_in
from sidrec.pairs.row_schedule import RowSchedule
from sidrec.types import Request


class UserBatch(NamedTuple):
    """Some users, whole: batches of users are what a loss without sampling needs.

    Attributes:
        user_index: Of each user.
        positive_user: Row in ``user_index`` of each interaction; no interaction twice.
        positive_item: Its item_index.
    """

    user_index: Int[Tensor, " user"]
    positive_user: Int[Tensor, " positive"]
    positive_item: Int[Tensor, " positive"]


@dataclass(frozen=True)
class UserBatches(Dataset[UserBatch]):
    """Batch by number, for one rank.

    Attributes:
        schedule: Which rows of ``users``.
        rank: Of this process.
        users: user_index of everybody with train interactions.
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


class UserDataModule(L.LightningDataModule):
    """The users of one corpus, each once an epoch.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        batch_size: Users per rank.
        seed: Of shuffles; dropout follows it too.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, corpus: str, batch_size: int, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self.corpus_folder, self.batch_size = Path(corpus), batch_size
        self.seed, self.num_workers = seed, num_workers
        self._first = BatchNumber(0, 0)
        self._loaded: Corpus | None = None
        self._batches: UserBatches | None = None

    @property
    def corpus(self) -> Corpus:
        """The corpus, loaded when first asked for."""
        if self._loaded is None:
            self._loaded = Corpus.load(self.corpus_folder)
        return self._loaded

    @property
    def batches(self) -> UserBatches:
        """This rank's training batches, by number."""
        if self._batches is None:
            train = self.corpus.train_interactions()
            check_train_only(self.corpus, train, "matrix factorisation")
            rank, world_size = rank_and_world_size()
            users = np.flatnonzero(np.diff(train.user_starts) > 0)
            schedule = RowSchedule(len(users), self.batch_size, world_size, self.seed)
            starts, items = (
                np.asarray(column, np.int64) for column in (train.user_starts, train.item_index)
            )
            self._batches = UserBatches(schedule, rank, users, starts, items)
        return self._batches

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.batches)

    def train_dataloader(self) -> BatchLoader[UserBatch]:
        """Return this rank's batches, from where a resumed run stopped."""
        return BatchLoader(
            self.batches,
            batch_sampler=PairBatchSampler(len(self.batches), self._first),
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
        }


def users_of(corpus: Corpus, requests: Sequence[Request]) -> Int[Tensor, " request"]:
    """Return the user_index behind each recommendation request, -1 of unknown users.

    Users without a train interaction count as unknown: nothing was learned about them.
    """
    train = corpus.train_interactions()
    known = np.flatnonzero(np.diff(train.user_starts) > 0)
    rows = corpus.timelines().user_starts[known]
    names = corpus.interactions.select(rows)["user_id"][:]
    index = dict(zip(names, known.tolist(), strict=True))
    return torch.tensor([index.get(one.request_id, -1) for one in requests], dtype=torch.long)
