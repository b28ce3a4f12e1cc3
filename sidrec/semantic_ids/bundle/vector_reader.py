"""Item vectors from .npy, .safetensors or .parquet files."""

import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from sidrec.console import say
from sidrec.errors import DataError
from sidrec.files import sha256_of_file
from sidrec.semantic_ids.bundle.storage import read_tensors
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS
from sidrec.types import ItemEmbeddings, not_finite_rows

Vectors = Tensor | np.ndarray

_IN_MEMORY_BYTES = 256 << 20


def as_tensor(vectors: Vectors) -> Tensor:
    """Convert an array to a tensor that shares its memory where the strides allow it."""
    if isinstance(vectors, Tensor):
        return vectors
    if any(stride < 0 for stride in vectors.strides):
        vectors = np.ascontiguousarray(vectors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # the tensor is only read
        return torch.from_numpy(vectors)


def as_float_rows(vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "item dim"]:
    """Return contiguous float32 rows on the CPU; the tensor itself if it already fits."""
    vectors = vectors.detach()
    if vectors.dtype == torch.float32 and vectors.is_contiguous() and vectors.device.type == "cpu":
        return vectors
    return stacked_rows(torch.split(vectors, CHUNK_ROWS), *vectors.shape)


def stacked_rows(
    parts: Iterable[Float[Tensor, "_ dim"]], num_rows: int, dim: int
) -> Float[Tensor, "item dim"]:
    """Return all rows of ``parts`` as one float32 matrix, copied part by part.

    A matrix above 256 MiB is backed by an unnamed temporary file (in TMPDIR) that is deleted with
    the matrix.

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


_LEAST, _MOST = 1e-15, 1e15  # range of the largest magnitude, if not 0
_NPY_MAGIC = b"\x93NUMPY"
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_VECTOR_COLUMNS = ("embedding", "embeddings", "vector")


class NamedVectors(NamedTuple):
    """Vectors of a catalogue with the ids and titles of its items.

    Attributes:
        embeddings: One vector per item.
        item_ids: The user's ids; row numbers where the file has none.
        titles: Empty where the file has none.
        has_ids: Whether the file names its items.
    """

    embeddings: ItemEmbeddings
    item_ids: list[str]
    titles: list[str]
    has_ids: bool = True


def read_vector_file(source: Path, *, first_id: int = 0) -> NamedVectors:
    """Read one vector per item; the defaults are row numbers as ids and empty titles.

    ``.npy`` holds a 2-D array; ``.safetensors`` a 2-D tensor named ``embeddings``, or its only
    2-D tensor; ``.parquet`` a list column ``embedding`` and optionally ``item_id`` and ``title``.
    The corpus fingerprint of such vectors is the file's sha256. Float32 arrays and tensors stay
    memory-mapped; others are converted in parts.

    Args:
        source: File of vectors.
        first_id: Id of row 0 where the file has no ids.

    Raises:
        DataError: If the file cannot be read, does not hold one row of finite numbers per item,
            or repeats an item_id.
    """
    readers = {".npy": _from_npy, ".safetensors": _from_safetensors}
    if not source.exists():
        raise DataError(f"{source} does not exist; check the path of the vectors.")
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
    vectors = finite_rows(vectors, str(source))
    return NamedVectors(
        ItemEmbeddings(vectors, "external", sha256_of_file(source)),
        item_ids or [str(first_id + row) for row in range(len(vectors))],
        titles or [""] * len(vectors),
        has_ids=item_ids is not None,
    )


def join_by_id(
    found: NamedVectors, item_ids: list[str], titles: list[str], *, fingerprint: str, name: str
) -> NamedVectors:
    """Join vectors to a corpus by item_id and return them in the order of the corpus.

    The function drops vectors of other items and reports them on the console.

    Args:
        found: Named vectors, in any order.
        item_ids: Item ids of the corpus.
        titles: Item titles of the corpus.
        fingerprint: Fingerprint of the corpus.
        name: Name of the file, for messages.

    Raises:
        DataError: If the file names no items, or an item of the corpus has no vector.
    """
    if not found.has_ids:
        raise DataError(
            f"{name} does not name its items, so they cannot be joined with a corpus; write "
            "Parquet with the columns item_id and embedding."
        )
    row_of = {item: row for row, item in enumerate(found.item_ids)}
    missing = [item for item in item_ids if item not in row_of]
    if missing:
        raise DataError(
            f"{name} lacks the vectors of {len(missing)} of {len(item_ids)} items of the corpus "
            f"(first: '{missing[0]}'); encode them too, or give the corpus of these vectors."
        )
    num_surplus = len(found.item_ids) - len(item_ids)
    if num_surplus:
        known = set(item_ids)
        first = next(item for item in found.item_ids if item not in known)
        say(f"{name}: {num_surplus} items are not in the corpus (first: '{first}'), left out.")
    rows = torch.tensor([row_of[item] for item in item_ids])
    vectors = found.embeddings.vectors
    parts = (vectors[part] for part in torch.split(rows, CHUNK_ROWS))
    joined = stacked_rows(parts, len(rows), vectors.shape[1])
    embeddings = ItemEmbeddings(joined, found.embeddings.encoder_hash, fingerprint)
    return NamedVectors(embeddings, item_ids, titles)


def is_vector_file(source: Path) -> bool:
    """Return whether a file holds vectors rather than texts, by its suffix and columns."""
    if source.suffix != ".parquet" or not source.exists():
        return source.suffix not in _TABLES
    try:
        return bool({*_VECTOR_COLUMNS} & {*pq.read_schema(source).names})
    except (OSError, pa.ArrowException):
        return True  # read_vector_file reports the error


def finite_rows(vectors: Tensor, name: str) -> Float[Tensor, "item dim"]:
    """Return vectors of any floating dtype and strides as float32 rows.

    Raises:
        DataError: If they are not a matrix of finite numbers whose squares fit float32; begins
            with ``name``, and names the row.
    """
    if 0 in vectors.shape:
        raise DataError(
            f"{name} is empty: shape {tuple(vectors.shape)}; give one vector for every item."
        )
    if vectors.ndim != 2:
        raise DataError(f"{name} has shape {tuple(vectors.shape)}, expected [items, dimensions].")
    if not vectors.is_floating_point():
        raise DataError(f"{name} holds {vectors.dtype}, expected floating-point numbers.")
    rows = as_float_rows(vectors)
    parts = (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
    largest = torch.stack([torch.stack(part.aminmax()).abs().max() for part in parts]).max().item()
    if not math.isfinite(largest):
        bad = not_finite_rows(rows)
        raise DataError(
            f"{name} row {bad[0]}, counted from 0: the vector holds NaN or infinity "
            f"({len(bad)} such rows); correct or leave out those items."
        )
    if largest and not _LEAST <= largest <= _MOST:
        raise DataError(
            f"{name}: the largest number is {largest:.3g}, expected {_LEAST:g} to {_MOST:g}, whose "
            "squares float32 can hold; scale the vectors."
        )
    return rows


def _from_npy(source: Path) -> Tensor:
    try:
        with source.open("rb") as file:
            if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise DataError(f"{source} is not a NumPy array; write it with numpy.save.")
        array = np.load(source, mmap_mode="c", allow_pickle=False)  # "c": torch needs write access
        return torch.from_numpy(array)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(
            f"{source} is not a NumPy array of numbers ({error}); write it with numpy.save."
        ) from None


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
        with pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            name = next((column for column in _VECTOR_COLUMNS if column in names), None)
            if name is None:
                raise DataError(
                    f"{source} has columns {names}; expected a list column 'embedding'."
                )
            parts = _matrices(file, name, source)
            first = next(parts, torch.zeros((0, 0)))
            rows = stacked_rows(_chain(first, parts), file.metadata.num_rows, first.shape[1])
            ids, titles = (
                file.read(columns=[column])[column].to_pylist() if column in names else None
                for column in ("item_id", "title")
            )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source} cannot be read as Parquet ({error}); write it again.") from None
    if titles is not None:
        titles = ["" if title is None else str(title) for title in titles]
    return rows, None if ids is None else _checked_ids(ids, source), titles


def _checked_ids(found: list[object], source: Path) -> list[str]:
    if None in found:
        raise DataError(f"{source}, row {found.index(None)}: item_id is missing; give every id.")
    ids = [str(value) for value in found]
    if len(set(ids)) < len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise DataError(f"{source}: item_id '{twice}' occurs {count} times; ids must be unique.")
    return ids


def _chain(first: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from others


def _matrices(file: pq.ParquetFile, name: str, source: Path) -> Iterator[Float[Tensor, "row dim"]]:
    """Yield the vector column as matrices of a few thousand rows, all of the first row's width."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    kind = file.schema_arrow.field(name).type
    if not any(is_kind(kind) for is_kind in kinds):
        raise DataError(f"{source}: the vector column has type {kind}, expected lists.")
    number_of_first, width = 0, -1
    for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=[name]):
        lists = batch.column(0)
        lengths = np.array(lists.value_lengths().fill_null(0), dtype=np.int64)
        width = int(lengths[0]) if width < 0 and len(lengths) else width
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise DataError(
                f"{source}, row {number_of_first + wrong[0]}: vector of width {lengths[wrong[0]]}, "
                f"expected {width} as in row 0."
            )
        flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        number_of_first += len(lengths)
        yield torch.from_numpy(flat.reshape(len(lengths), width))
