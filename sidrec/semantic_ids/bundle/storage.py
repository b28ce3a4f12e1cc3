"""Files of a Semantic-ID bundle: write, describe by hashes, refuse when altered."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sidrec.errors import DataError
from sidrec.files import read_json, sha256_of_file
from sidrec.semantic_ids.kmeans.sharded_rows import CHUNK_ROWS

DESCRIPTION = "semantic_ids.json"
TABLE = "semantic_ids.parquet"
CODEBOOKS = "codebooks.safetensors"
EMBEDDINGS = "embeddings.safetensors"

_HASHED_BYTES = 1 << 30
_IDENTITY = ("schema_version", "codebook_sizes", "corpus_fingerprint", "encoder_hash", "content")
_MAKING = ("quantizer", "policy", "source", "quality")
_KEYS = (*_IDENTITY, "hash", "num_items", "num_levels", *_MAKING, "files")


def write_table(
    target: Path, codes: Int[Tensor, "item level"], item_ids: list[str], titles: list[str]
) -> None:
    """Write item_index, item_id, title and codes (list of int16), one row per item."""
    num_items, num_levels = codes.shape
    flat = pa.array(codes.to(torch.int16).flatten().numpy())
    offsets = pa.array(np.arange(num_items + 1, dtype=np.int32) * num_levels)
    columns = {
        "item_index": pa.array(np.arange(num_items, dtype=np.int64)),
        "item_id": pa.array(item_ids, pa.string()),
        "title": pa.array(titles, pa.string()),
        "codes": pa.ListArray.from_arrays(offsets, flat),
    }
    pq.write_table(pa.table(columns), target)


def read_table(source: Path, *, num_levels: int) -> tuple[Tensor, list[str], list[str]]:
    """Return codes (int64), item_ids and titles.

    Raises:
        DataError: If a column is missing, rows are out of order, or a row has the wrong length.
    """
    try:
        table = pq.read_table(source, columns=["item_index", "item_id", "title", "codes"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{source} cannot be read: {error}; make the bundle again.") from None
    index = table["item_index"].to_numpy()
    if not np.array_equal(index, np.arange(len(index))):
        raise DataError(f"{source}: item_index must run 0, 1, 2, …; make the bundle again.")
    lists = table["codes"].combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if not (lists.value_lengths().to_numpy() == num_levels).all():
        raise DataError(f"{source}: some items do not have {num_levels} codes; make it again.")
    codes = torch.from_numpy(flat.astype(np.int64).reshape(len(index), num_levels))
    return codes, table["item_id"].to_pylist(), table["title"].to_pylist()


def write_tensors(target: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name, copied to the CPU and made contiguous."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, target)
    target.chmod(target.parent.stat().st_mode & 0o666)  # safetensors writes files as 0600


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Return tensors by name, memory-mapped: pages are read on first access.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        with safe_open(source, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{source} cannot be read: {error}; make the file again.") from None


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of each file."""
    paths = {name: folder / name for name in names}
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for name, path in paths.items()
    }


def read_description(folder: Path, *, schema_version: int) -> dict[str, Any]:
    """Return ``semantic_ids.json`` after checking it and its files against their hashes.

    Raises:
        DataError: If a file is missing or altered; names the first one.
    """
    source = folder / DESCRIPTION
    if not source.exists():
        raise DataError(f"{folder} is not a Semantic-ID bundle: {DESCRIPTION} is missing.")
    facts = read_json(source)
    found = facts.get("schema_version") if isinstance(facts, dict) else None
    if found != schema_version:
        maker = "sidrec 0.1" if found == 1 else f"another version of sidrec (schema {found})"
        raise DataError(
            f"{folder} was made by {maker}, this version reads schema {schema_version}; make the "
            "Semantic IDs again."
        )
    missing = [key for key in _KEYS if key not in facts]
    if missing:
        raise DataError(f"{source} lacks {', '.join(missing)}; make the bundle again.")
    if bundle_hash({key: facts[key] for key in _IDENTITY}) != facts["hash"]:
        raise DataError(f"{source} was altered: its hash does not match; make the bundle again.")
    for name in (TABLE, CODEBOOKS, EMBEDDINGS):
        _check_file(folder / name, facts["files"].get(name, {}))
    return dict(facts)


def bundle_hash(identity: dict[str, Any]) -> str:
    """Return the sha256 of a bundle's identifying facts."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 over tensor names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        rows = tensor if tensor.ndim else tensor.unsqueeze(0)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS].cpu().contiguous()
            digest.update(part.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_strings(strings: Sequence[str]) -> str:
    """Return the sha256 over strings, their lengths included."""
    digest = hashlib.sha256()
    for text in strings:
        data = text.encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    if not path.exists():
        raise DataError(f"{path} is missing; make the bundle again with `sidrec ids`.")
    size = path.stat().st_size
    if size != expected.get("bytes"):
        raise DataError(
            f"{path} has {size} bytes, {DESCRIPTION} says {expected.get('bytes')}: "
            "it was truncated or replaced; make the bundle again."
        )
    if size <= _HASHED_BYTES and sha256_of_file(path) != expected.get("sha256"):
        raise DataError(
            f"{path} does not have the sha256 in {DESCRIPTION}: it was altered; "
            "make the bundle again."
        )
