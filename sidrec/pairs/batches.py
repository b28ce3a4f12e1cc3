"""Training batches of pairs, indexed by batch number."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import Dataset

from sidrec.pairs.item_item import ItemItemPairs
from sidrec.pairs.query_item import QueryItemPairs
from sidrec.pairs.schedule import PairSchedule
from sidrec.pairs.token_store import TokenStore
from sidrec.training.numbered_batches import BatchNumber
from sidrec.types import PairBatch


@dataclass(frozen=True, slots=True)
class PairBatches(Dataset[PairBatch]):
    """Training batches of pairs by number, for one rank.

    Attributes:
        schedule: Task and rows of each batch.
        rank: Rank of this process.
        query_item: Query-item pairs; None when the task is off.
        item_item: Item-item pairs; None when the task is off.
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
