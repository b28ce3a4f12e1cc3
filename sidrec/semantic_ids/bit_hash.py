"""A number for a vector that depends on all its bits, and on nothing that the bits mean."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.pairs.permutation import hash_counters
from sidrec.semantic_ids.rows import CHUNK_ROWS

_ODD = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(vectors: Float[Tensor, "row dim"], *, key: int) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits per row; rows with equal float32 numbers share them.

    Others do not, up to chance: some two of n different rows do with probability n² / 2^65.

    Args:
        vectors: Any floating dtype; compared as float32, where -0.0 equals 0.0.
        key: Chooses the hash function.
    """
    columns = np.arange(vectors.shape[1], dtype=np.int64)
    weights = hash_counters(columns, key=key) | np.uint64(1)
    found = [np.zeros(0, dtype=np.uint64)]
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS].to("cpu", torch.float32) + 0.0
        bits = chunk.contiguous().numpy().view(np.uint32).astype(np.uint64)
        mixed = (bits + np.uint64(1)) * weights
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _ODD
        sums = (mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64)
        found.append(hash_counters(sums.view(np.int64), key=key))
    return np.concatenate(found)
