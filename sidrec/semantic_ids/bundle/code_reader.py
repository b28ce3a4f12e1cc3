"""Semantic IDs that another program made: JSON, CSV, Parquet or tensor files -> rows of codes."""

import json
import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from sidrec.errors import DataError
from sidrec.semantic_ids.quantizers.base import MAX_CODEBOOK_SIZE

Join = Literal["item_id", "row"]
_TOKEN = re.compile(r"<?(?:[A-Za-z]+_)?(\d+)>?")  # <a_12>, a_12 or 12
_PIECE = re.compile(r"[^\s,\[\]]+")  # of "[1, 2, 3]" or "<a_1> <b_2>"
_NOT_CODES = ("item_id", "item_index", "title")
_TABLES = {".csv": ",", ".tsv": "\t", ".parquet": ""}
_TENSORS = (".pt", ".npy")


def read_codes(file: Path, item_ids: Sequence[str], *, join: Join) -> Int[Tensor, "item level"]:
    """Read the Semantic ID of every item of a catalogue.

    - ``.json``: an object from item to its codes, which are numbers or tokens such as ``<a_12>``
      (LETTER's and LC-Rec's ``index.json``).
    - ``.csv``, ``.tsv``, ``.parquet``: a column item_id, and one column of lists or several of
      codes, coarse level first; ``title`` and ``item_index`` are not read.
    - ``.pt``, ``.npy``: a matrix of codes by row number, items by levels or levels by items
      (GRID's ``merged_predictions_tensor.pt``). Nothing is unpickled but plain tensors.

    Args:
        file: File of codes.
        item_ids: The user's ids of the catalogue, in its order.
        join: Whether the file names items by ``item_id`` or by ``row`` number of the catalogue,
            from 0; a matrix has row numbers only.

    Raises:
        DataError: If the file cannot be read, an item lacks codes or is not in the catalogue, or a
            value is not a code; names the first such item.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist; check the path of --codes.")
    if file.suffix in _TENSORS:
        return _matrix(file, len(item_ids))
    pairs: Iterable[tuple[str, Any]]
    if file.suffix == ".json":
        pairs = _of_json(file)
    elif file.suffix in _TABLES:
        pairs = _of_table(file)
    else:
        known = ", ".join([".json", *_TABLES, *_TENSORS])
        raise DataError(f"{file} has type '{file.suffix}', expected one of {known}.")
    wanted = list(item_ids) if join == "item_id" else [str(row) for row in range(len(item_ids))]
    return _joined(pairs, wanted, file, join)


def _of_json(file: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=list)  # keeps repeated keys
    except ValueError as error:
        raise DataError(f"{file} is no valid JSON: {error}") from None
    if not isinstance(content, list) or not all(isinstance(one, tuple) for one in content):
        raise DataError(f'{file}: expected an object such as {{"7": ["<a_1>", "<b_2>"]}}.')
    return content


def _of_table(file: Path) -> Iterable[tuple[str, Any]]:
    try:
        if file.suffix == ".parquet":
            table = pl.read_parquet(file, glob=False, hive_partitioning=False)
        else:
            table = pl.read_csv(
                file, separator=_TABLES[file.suffix], infer_schema=False, glob=False
            )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    levels = [name for name in table.columns if name not in _NOT_CODES]
    if "item_id" not in table.columns or not levels:
        raise DataError(
            f"{file} has columns {table.columns}; expected item_id and columns of codes."
        )
    return ((str(item), list(codes)) for item, *codes in table.select("item_id", *levels).rows())


def _joined(
    pairs: Iterable[tuple[str, Any]], wanted: list[str], file: Path, join: Join
) -> Int[Tensor, "item level"]:
    row_of, what = {item: row for row, item in enumerate(wanted)}, f"{join} '%s'"
    found: dict[str, list[int]] = {}
    surplus = []
    for item, value in pairs:
        if item in found:
            raise DataError(f"{file}: {what % item} occurs twice; give every item one ID.")
        if item not in row_of:
            surplus.append(item)
            continue
        found[item] = [_code(one, f"{file}, {what % item}") for one in _flat(value)]
    missing = [item for item in wanted if item not in found]
    hint = "" if join == "row" else " (--join row: the file numbers items from 0)"
    if missing:
        raise DataError(
            f"{file} lacks the codes of {len(missing)} of {len(wanted)} items of the catalogue, "
            f"first {what % missing[0]}; add them, or give the corpus of these codes{hint}."
        )
    if surplus:
        raise DataError(
            f"{file} has codes of {len(surplus)} items that are not in the catalogue, first "
            f"{what % surplus[0]}; leave them out, or give the corpus of these codes{hint}."
        )
    num_levels = len(found[wanted[0]])
    odd = next((one for one in wanted if len(found[one]) != num_levels or not num_levels), None)
    if odd is not None:
        raise DataError(
            f"{file}, {what % odd}: {len(found[odd])} codes, expected {num_levels or 'some'} as "
            f"for {what % wanted[0]}."
        )
    return torch.tensor([found[item] for item in wanted], dtype=torch.int64)


def _flat(value: Any) -> list[Any]:  # noqa: ANN401
    """Return the codes of one item: of a list, of a text that lists them, or of one cell each."""
    if isinstance(value, str):
        return _PIECE.findall(value)
    if isinstance(value, list | tuple):
        return [one for part in value for one in _flat(part)]
    return [value]


def _code(value: Any, where: str) -> int:  # noqa: ANN401
    token = _TOKEN.fullmatch(value) if isinstance(value, str) else None
    number = int(token[1]) if token else value
    if type(number) is not int or not 0 <= number < MAX_CODEBOOK_SIZE:
        raise DataError(
            f"{where}: {value!r} is no code; expected a whole number from 0 to "
            f"{MAX_CODEBOOK_SIZE - 1}, or a token such as <a_12>."
        )
    return number


def _matrix(file: Path, num_items: int) -> Int[Tensor, "item level"]:
    try:
        if file.suffix == ".npy":
            codes = torch.from_numpy(np.load(file, allow_pickle=False))
        else:
            codes = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
    ):  # their messages advise to unpickle whatever the file holds
        raise DataError(
            f"{file} holds no plain tensor; save a matrix of codes with torch.save or numpy.save."
        ) from None
    if not isinstance(codes, Tensor) or codes.ndim != 2 or num_items not in codes.shape:
        shape = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise DataError(
            f"{file} holds {shape}, expected a matrix with one row or column for each of the "
            f"{num_items} items of the catalogue."
        )
    codes = codes if len(codes) == num_items else codes.T
    wrong = ((codes != codes.round()) | (codes < 0) | (codes >= MAX_CODEBOOK_SIZE)).nonzero()
    if len(wrong):
        row, level = wrong[0].tolist()
        _code(codes[row, level].item(), f"{file}, row '{row}'")
    return codes.to(torch.int64).contiguous()
