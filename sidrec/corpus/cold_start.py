"""Cold-start items of a corpus: named by valid or test, never seen in training."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sidrec.corpus.store import Corpus
from sidrec.types import Request


def cold_start_items(corpus: Corpus) -> Bool[Tensor, " item"]:
    """Mark the items of valid and test that training does not see.

    Training sees an item in a train interaction or as an answer of a train query, whichever of the
    two tasks is trained.
    """
    timelines, queries = corpus.timelines(), corpus.queries.data.table
    is_train_query = pc.equal(queries["split"], "train")
    train, later = np.zeros((2, corpus.num_items), bool)
    for named, items, asked in (
        (train, corpus.train_interactions().item_index, is_train_query),
        (later, timelines.item_index[timelines.split != 0], pc.invert(is_train_query)),
    ):
        named[items] = True
        named[pc.list_flatten(queries["item_index"].filter(asked)).to_numpy()] = True
    return torch.from_numpy(later & ~train)


def items_to_index(corpus: Corpus) -> Int64[np.ndarray, " item"]:
    """Return the items whose text training may map to their Semantic ID, ascending.

    A split for cold-start figures (temporal, or with ``cold_item_fraction``) leaves out the
    cold-start items; elsewhere all items are known in training.
    """
    settings = corpus.description["settings"]
    if settings["split"] == "temporal" or settings.get("cold_item_fraction", 0) > 0:
        return np.flatnonzero(~cold_start_items(corpus).numpy())
    return np.arange(corpus.num_items)


def cold_start_requests(
    requests: Sequence[Request], cold: Bool[Tensor, " item"]
) -> tuple[list[int], list[Request]]:
    """Return the requests that a cold-start item answers, each with those answers alone.

    Args:
        requests: Requests of one task.
        cold: Cold-start items, see :func:`cold_start_items`.

    Returns:
        Their places in ``requests``, and the requests.
    """
    is_cold = cold.tolist()
    found = [
        (row, one._replace(relevant=own, grades=()))
        for row, one in enumerate(requests)
        if (own := tuple(item for item in one.relevant if is_cold[item]))
    ]
    return [row for row, _ in found], [one for _, one in found]
