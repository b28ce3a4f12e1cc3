"""Purity of Semantic-ID prefixes with respect to item attributes such as genre or brand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Int64
from torch import Tensor

from sidrec.errors import DataError

_NO_ATTRIBUTES = ("item_index", "item_id", "title", "text", "description")
_ITEMS_PER_VALUE = 10  # columns with more values than this are texts, not attributes
_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".jsonl": pl.read_ndjson,
}


class Attribute(NamedTuple):
    """Values of one attribute; an item has none, one or several, each once.

    Attributes:
        name: Name of the column.
        item: Row of the item that has the value.
        value: Number of the value, dense from 0.
    """

    name: str
    item: Int64[np.ndarray, " entry"]
    value: Int64[np.ndarray, " entry"]


def attributes_of_table(table: pa.Table, rows: Int64[np.ndarray, " row"]) -> list[Attribute]:
    """Return attributes from columns of texts, lists of texts, whole numbers or booleans.

    Texts are split at ``|``. Columns with fewer than ten entries per value are left out.

    Args:
        table: Columns of values.
        rows: Item index of each row of the table; -1 for none.
    """
    found = [
        _attribute(name, column.combine_chunks(), rows)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return [one for one in found if one is not None]


def attributes_of_items(items: pa.Table) -> list[Attribute]:
    """Return the attributes in a corpus's items.parquet, except id, title and texts."""
    named = [name for name in items.column_names if name not in _NO_ATTRIBUTES]
    return attributes_of_table(items.select(named), np.arange(len(items)))


def read_attributes(source: Path, item_ids: Sequence[str]) -> list[Attribute]:
    """Read attributes of items from a Parquet, CSV or JSONL file with a column ``item_id``.

    Raises:
        DataError: If the file cannot be read, has no ``item_id``, knows none of the items, or has
            no usable column.
    """
    if source.suffix not in _READERS:
        raise DataError(f"{source} has type '{source.suffix}', expected .parquet, .csv or .jsonl.")
    try:
        frame = _READERS[source.suffix](source)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source} cannot be read ({error}); write it again.") from None
    if "item_id" not in frame.columns:
        raise DataError(f"{source} has columns {frame.columns}; expected 'item_id' among them.")
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    ids = frame["item_id"].cast(pl.String).to_list()
    rows = np.array([row_of.get(item_id, -1) for item_id in ids], dtype=np.int64)
    if not (rows >= 0).any():
        raise DataError(f"{source} names none of the {len(item_ids)} items; check its item_id.")
    attributes = attributes_of_table(frame.drop("item_id").to_arrow(), rows)
    if not attributes:
        raise DataError(
            f"{source} has no column with at least {_ITEMS_PER_VALUE} items per value, "
            "e.g. genre or brand; add one, or leave the file out."
        )
    return attributes


def prefix_purity(groups: Int[Tensor, " item"], attribute: Attribute) -> float | None:
    """Return the share of items that have the value most frequent in their group.

    Items without a value do not count. Groups with only one item that has a value do not either.

    Args:
        groups: Group of each item, dense from 0.
        attribute: What items of a group should share.

    Returns:
        In [0, 1]; None where no group has two items with a value.
    """
    num_values = int(attribute.value.max()) + 1
    group = groups.numpy()[attribute.item]
    sizes = np.bincount(groups.numpy()[np.unique(attribute.item)], minlength=int(group.max()) + 1)
    keys, counts = np.unique(group * num_values + attribute.value, return_counts=True)
    best = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(best, keys // num_values, counts)
    judged = sizes > 1
    total = int(sizes[judged].sum())
    return int(best[judged].sum()) / total if total else None


def _attribute(name: str, column: pa.Array, rows: np.ndarray) -> Attribute | None:
    if _is_text(column.type):
        column = pc.split_pattern(column, "|")
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        owner = rows[pc.list_parent_indices(column).to_numpy()]
        column = column.flatten()
    else:
        owner = rows
    countable = _is_text(column.type) or pa.types.is_integer(column.type)
    return _dense(name, column, owner) if countable or pa.types.is_boolean(column.type) else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _dense(name: str, values: pa.Array, owner: np.ndarray) -> Attribute | None:
    present = (owner >= 0) & pc.is_valid(values).to_numpy(zero_copy_only=False)
    if not present.any():
        return None
    kept = values.filter(pa.array(present))
    code = pc.dictionary_encode(kept).indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = np.unique(np.stack([owner[present], code], axis=1), axis=0)
    if (pairs[:, 1].max() + 1) * _ITEMS_PER_VALUE > len(pairs):
        return None
    return Attribute(name, pairs[:, 0].copy(), pairs[:, 1].copy())
