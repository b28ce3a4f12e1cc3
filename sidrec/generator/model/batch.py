"""Batches of requests of one task, padded, with their target items."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sidrec.generator.decoding.item_filters import pad_items
from sidrec.types import Request, Task


class GeneratorBatch(NamedTuple):
    """Batch of requests of one task.

    Attributes:
        task: The same for all rows, and on all ranks at a step.
        texts: Queries (search); empty for recommendation. The model tokenizes them.
        text_rows: Row of each text in the training texts, for stored states; -1 elsewhere.
        indexed_item: item_index whose text is the query of an indexing example; -1 elsewhere.
        history: item_index, oldest first, already cut to the model's length; -1 pads at the end.
        target: item_index of the answer; -1 where it is unknown.
        excluded: item_index of items that must not be returned; -1 pads.
        user_index: User of a training example of recommendation; -1 elsewhere.
        request_rows: Row of each request in the full list of requests, to restore its order.
    """

    task: Task
    texts: list[str]
    text_rows: Int[Tensor, " request"]
    indexed_item: Int[Tensor, " request"]
    history: Int[Tensor, "request item"]
    target: Int[Tensor, " request"]
    excluded: Int[Tensor, "request excluded"]
    user_index: Int[Tensor, " request"]
    request_rows: Int[Tensor, " request"]

    @property
    def num_requests(self) -> int:
        """Number of requests; ``len`` is the number of fields, as ``_replace`` needs it."""
        return len(self.target)


def batch_of_requests(
    requests: Sequence[Request],
    *,
    task: Task,
    request_rows: Sequence[int],
    max_history_items: int,
    exclude_history: bool,
) -> GeneratorBatch:
    """Collate requests of one task for decoding.

    Args:
        requests: All of one task; an empty list makes an empty batch.
        task: Task of the requests.
        request_rows: Row of each request, passed through to the caller.
        max_history_items: Number of most recent items to read; all items are excluded.
        exclude_history: Leave the user's own items out of recommendation lists.
    """
    histories = [request.history[-max_history_items:] for request in requests]
    excluded = [request.history if exclude_history else () for request in requests]
    return GeneratorBatch(
        task=task,
        texts=[request.query for request in requests] if task == "search" else [],
        text_rows=torch.full((len(requests),), -1),
        indexed_item=torch.full((len(requests),), -1),
        history=pad_items(histories),
        target=torch.tensor(
            [next(iter(request.relevant), -1) for request in requests], dtype=torch.long
        ),
        excluded=pad_items(excluded),
        user_index=torch.full((len(requests),), -1),
        request_rows=torch.tensor(request_rows, dtype=torch.long),
    )
