"""Corpus tables: schemas, names of splits, a Parquet writer, and a hash of their values."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")  # position = code in derived files

SCHEMA_VERSION = 2
ROWS_PER_GROUP = 131_072

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_index", pa.int64()),
        pa.field("item_id", pa.string()),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
    ]
)
INTERACTION_SCHEMA = pa.schema(
    [
        pa.field("user_index", pa.int64()),
        pa.field("user_id", pa.string()),
        pa.field("item_index", pa.int64()),
        pa.field("timestamp", pa.int64()),
        pa.field("rating", pa.float32()),
        pa.field("split", pa.string()),
    ]
)
QUERY_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("item_index", pa.list_(pa.int64())),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
    ]
)
# Column of interactions.parquet, present only where interactions weigh differently.
INTERACTION_WEIGHT = pa.field("weight", pa.float32())
# Column of queries.parquet, present only where a source weighs the answers of its queries.
WEIGHT_FIELD = pa.field("weight", pa.list_(pa.float32()))
# Column of queries.parquet, present only where a source grades the answers of its queries.
GRADE_FIELD = pa.field("grade", pa.list_(pa.int64()))
SCHEMAS = {"items": ITEM_SCHEMA, "interactions": INTERACTION_SCHEMA, "queries": QUERY_SCHEMA}


def item_schema(found: pa.Schema) -> pa.Schema:
    """Return the schema of items.parquet: the four fixed columns, then attributes as found.

    Large strings and lists become plain ones, unsigned integers int64.
    """
    attributes = [field for field in found if field.name not in ITEM_SCHEMA.names]
    return pa.schema([*ITEM_SCHEMA, *(pa.field(f.name, _plain(f.type)) for f in attributes)])


def _plain(found: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(found) or pa.types.is_list(found):
        return pa.list_(_plain(found.value_type))
    if pa.types.is_integer(found):
        return pa.int64()
    if pa.types.is_floating(found) or pa.types.is_boolean(found):
        return found
    return pa.string()


class TableWriter:
    """Parquet writer of one file in bounded row groups; hashes the values as it writes.

    The hash depends on column names, types and values alone, not on chunks, the Parquet library,
    the time or the path.

    Args:
        file: File to write.
        schema: Columns and their types; every written table is cast to it.

    Attributes:
        schema: The schema of the file.
        num_rows: Rows written so far.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._hashes = {name: _ValueHash() for name in schema.names}
        self.num_rows = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows; columns may come in any order."""
        table = table.select(self.schema.names).cast(self.schema)
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        for name, values in self._hashes.items():
            for chunk in table.column(name).chunks:
                values.update(chunk)
        self.num_rows += table.num_rows

    def digest(self) -> str:
        """Return the sha256 over all values written so far, in hexadecimal."""
        columns = [
            [field.name, str(field.type), self._hashes[field.name].hexdigest()]
            for field in self.schema
        ]
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


class _ValueHash:
    """Hash of a column: presence, lengths and values in separate streams."""

    def __init__(self) -> None:
        self._present, self._lengths, self._values = (hashlib.sha256() for _ in range(3))
        self._inner: _ValueHash | None = None

    def update(self, array: pa.Array) -> None:
        self._present.update(_bytes_of(array.is_valid()))
        if pa.types.is_string(array.type):
            array = pc.fill_null(array, "")
            self._lengths.update(_bytes_of(pc.binary_length(array)))
            self._values.update(_characters(array))
        elif pa.types.is_list(array.type):
            self._lengths.update(_bytes_of(pc.fill_null(pc.list_value_length(array), 0)))
            self._inner = self._inner or _ValueHash()
            self._inner.update(array.flatten())
        else:
            if array.null_count:
                array = pc.fill_null(array, pa.scalar(0).cast(array.type))
            self._values.update(_bytes_of(array))

    def hexdigest(self) -> str:
        hashes = (self._present, self._lengths, self._values, self._inner)
        return "".join(part.hexdigest() for part in hashes if part is not None)


def _bytes_of(array: pa.Array) -> bytes:
    values: bytes = array.to_numpy(zero_copy_only=False).tobytes()
    return values


def _characters(array: pa.Array) -> bytes | memoryview:
    _, offsets_buffer, characters = array.buffers()
    if not len(array) or characters is None:
        return b""
    offsets = np.frombuffer(offsets_buffer, np.int32)
    return memoryview(characters)[offsets[array.offset] : offsets[array.offset + len(array)]]
