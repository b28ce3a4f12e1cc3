"""How often each item was consumed in train."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sidrec.corpus.store import Interactions
from sidrec.errors import DataError


def popularity(interactions: Interactions, num_items: int) -> Int64[Tensor, " item"]:
    """Count the train interactions of each item.

    Args:
        interactions: From ``Corpus.train_interactions``; nothing else is accepted, so that no
            test row can enter.
        num_items: Size of the catalogue; items nobody consumed count 0.

    Raises:
        DataError: If the rows are not train interactions, or an item lies outside the catalogue.
    """
    if not isinstance(interactions, Interactions):
        raise DataError(
            f"popularity counts train rows only, got {type(interactions).__name__}; "
            "pass Corpus.train_interactions()."
        )
    items = interactions.item_index
    if len(items) and not 0 <= int(items.min()) <= int(items.max()) < num_items:
        raise DataError(
            f"interactions name item {int(items.max())}, the catalogue has {num_items} items; "
            "pass the interactions and num_items of the same corpus."
        )
    return torch.from_numpy(np.bincount(items, minlength=num_items).astype(np.int64))
