"""Float32 matrices of any size: small ones in memory, large ones in a file without a name."""

import tempfile
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import DataError
from sidrec.semantic_ids.rows import CHUNK_ROWS

Vectors = Tensor | np.ndarray

_IN_MEMORY_BYTES = 256 << 20


def as_tensor(vectors: Vectors) -> Tensor:
    """Return an array's tensor; both share memory where the strides allow it."""
    if isinstance(vectors, Tensor):
        return vectors
    if any(stride < 0 for stride in vectors.strides):
        vectors = np.ascontiguousarray(vectors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # we only read
        return torch.from_numpy(vectors)


def as_float_rows(vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "item dim"]:
    """Return contiguous float32 rows on the CPU; the tensor itself if it is that already."""
    vectors = vectors.detach()
    if vectors.dtype == torch.float32 and vectors.is_contiguous() and vectors.device.type == "cpu":
        return vectors
    return stacked_rows(torch.split(vectors, CHUNK_ROWS), *vectors.shape)


def stacked_rows(
    parts: Iterable[Float[Tensor, "_ dim"]], num_rows: int, dim: int
) -> Float[Tensor, "item dim"]:
    """Return all rows of ``parts`` as one float32 matrix, made part by part.

    Above 256 MiB it lies in a file in the folder for temporary files (TMPDIR), which has no name
    and vanishes with the matrix.

    Raises:
        DataError: If the parts do not hold ``num_rows`` rows.
    """
    rows = _empty(num_rows, dim)
    filled = 0
    for part in parts:
        for chunk in torch.split(part, CHUNK_ROWS):
            rows[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    if filled != num_rows:
        raise DataError(f"{filled} rows were found, expected {num_rows}; write the file again.")
    return rows


def _empty(num_rows: int, dim: int) -> Tensor:
    if num_rows * dim * 4 <= _IN_MEMORY_BYTES:
        return torch.empty(num_rows, dim)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the name and the handle
        return torch.from_numpy(np.memmap(file, np.float32, mode="w+", shape=(num_rows, dim)))
