"""Anybody's item vectors, from .npy, .safetensors or .parquet."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.errors import DataError
from sidrec.files import sha256_of_file
from sidrec.semantic_ids.bundle_files import read_tensors
from sidrec.types import ItemEmbeddings

_VECTOR_COLUMNS = ("embedding", "embeddings", "vector")


class NamedVectors(NamedTuple):
    """Vectors of a catalogue with the ids and titles of its items."""

    embeddings: ItemEmbeddings
    item_ids: list[str]
    titles: list[str]


def read_vector_file(source: Path) -> NamedVectors:
    """Read one vector per item; rows without ids are numbered, rows without titles have none.

    ``.npy`` holds a 2-D array; ``.safetensors`` a 2-D tensor named ``embeddings``, or its only
    2-D tensor; ``.parquet`` a list column ``embedding`` and optionally ``item_id`` and ``title``.
    The corpus fingerprint of such vectors is the file's sha256.

    Raises:
        DataError: If the file cannot be read or does not hold one row of finite numbers per item.
    """
    readers = {".npy": _from_npy, ".safetensors": _from_safetensors}
    if not source.exists():
        raise DataError(f"{source} does not exist; check the path given to --embeddings.")
    item_ids: list[str] | None = None
    titles: list[str] | None = None
    if source.suffix == ".parquet":
        vectors, item_ids, titles = _from_parquet(source)
    elif source.suffix in readers:
        vectors = readers[source.suffix](source)
    else:
        raise DataError(
            f"{source} has type '{source.suffix}', expected .npy, .safetensors or .parquet."
        )
    if 0 in vectors.shape:
        raise DataError(
            f"{source} is empty: shape {tuple(vectors.shape)}; give one vector for every item."
        )
    if vectors.ndim != 2:
        raise DataError(f"{source} has shape {tuple(vectors.shape)}, expected [items, dimensions].")
    if not vectors.is_floating_point():
        raise DataError(f"{source} holds {vectors.dtype}, expected floating-point numbers.")
    vectors = vectors.float()
    bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"{source} row {bad[0]}, counted from 0: the vector holds NaN or infinity "
            f"({len(bad)} such rows); correct or leave out those items."
        )
    return NamedVectors(
        ItemEmbeddings(vectors, "external", sha256_of_file(source)),
        item_ids or [str(row) for row in range(len(vectors))],
        titles or [""] * len(vectors),
    )


def _from_npy(source: Path) -> Tensor:
    try:
        array = np.load(source, mmap_mode="c", allow_pickle=False)  # "c": torch wants it writable
        return torch.from_numpy(array)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(f"{source} is no NumPy array of numbers: {error}") from None


def _from_safetensors(source: Path) -> Tensor:
    tensors = read_tensors(source)
    if "embeddings" in tensors:
        return tensors["embeddings"]
    flat = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    if len(flat) != 1:
        raise DataError(
            f"{source} holds tensors {sorted(tensors)}; expected one 2-D tensor named 'embeddings'."
        )
    return next(iter(flat.values()))


def _from_parquet(source: Path) -> tuple[Tensor, list[str] | None, list[str] | None]:
    try:
        table = pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source} cannot be read as Parquet: {error}") from None
    name = next((column for column in _VECTOR_COLUMNS if column in table.column_names), None)
    if name is None:
        raise DataError(
            f"{source} has columns {table.column_names}; expected a list column 'embedding'."
        )
    ids, titles = (
        [str(value) for value in table[column].to_pylist()]
        if column in table.column_names
        else None
        for column in ("item_id", "title")
    )
    return _matrix(table[name], source), ids, titles


def _matrix(column: pa.ChunkedArray, source: Path) -> Float[Tensor, "item dim"]:
    lists = column.combine_chunks()
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(lists.type) for is_kind in kinds):
        raise DataError(f"{source}: the vector column has type {lists.type}, expected lists.")
    lengths = np.array(lists.value_lengths().fill_null(0), dtype=np.int64)
    wrong = np.flatnonzero(lengths != lengths[:1])
    if len(wrong):
        raise DataError(
            f"{source}, row {wrong[0]}: vector of width {lengths[wrong[0]]}, "
            f"expected {lengths[0]} as in row 0."
        )
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(flat.reshape(len(lengths), -1))
