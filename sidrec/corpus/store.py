"""Corpus on disk, memory-mapped: its size does not count as resident memory."""

import atexit
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from jaxtyping import Float32, Int8, Int64
from torch import Tensor

from sidrec.corpus.memmap_cache import arrow_file, derived_folder, interaction_arrays
from sidrec.corpus.prepare_settings import DEFAULT_BUILD, BuildSettings
from sidrec.corpus.schema import SCHEMA_VERSION, SCHEMAS
from sidrec.errors import DataError
from sidrec.files import read_json, sha256_of_file

_ROWS_AT_ONCE = 4_096


class ColumnStrings(Sequence[str]):
    """Column of strings as a sequence; a slice is another such sequence and copies nothing.

    Args:
        column: Strings without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "ColumnStrings": ...
    def __getitem__(self, place: "int | slice") -> "str | ColumnStrings":
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"a column is sliced with step 1, got {step}")
            return ColumnStrings(self._column.slice(first, max(0, end - first)))
        text: str = self._column[place].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._column.slice(first, _ROWS_AT_ONCE).to_pylist()


class Interactions(NamedTuple):
    """Train interactions, sorted by user, then time; views of memory-mapped files.

    Only ``Corpus.train_interactions`` creates them, so a function that takes ``Interactions``
    learns from train rows.

    Attributes:
        user_index: User of each interaction.
        item_index: Item of each interaction.
        timestamp: Microseconds since 1970, not decreasing within a user.
        user_starts: Rows of user u are [user_starts[u], user_starts[u + 1]).
        weight: How often training draws an interaction, relative to others; None: all alike.
    """

    user_index: Int64[np.ndarray, " interaction"]
    item_index: Int64[np.ndarray, " interaction"]
    timestamp: Int64[np.ndarray, " interaction"]
    user_starts: Int64[np.ndarray, " bound"]
    weight: Float32[np.ndarray, " interaction"] | None = None


class Timelines(NamedTuple):
    """Interactions of all splits in user order, for evaluation and leakage checks only.

    Attributes:
        item_index: Item of each row of interactions.parquet.
        split: Position of the row's split in ``SPLITS``: 0 train, 1 valid, 2 test.
        user_starts: Rows of user u are [user_starts[u], user_starts[u + 1]).
    """

    item_index: Int64[np.ndarray, " row"]
    split: Int8[np.ndarray, " row"]
    user_starts: Int64[np.ndarray, " bound"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Items, interactions and queries of one catalogue.

    Attributes:
        folder: Corpus directory.
        fingerprint: sha256 over schema version and values of all tables, independent of path and
            time.
        num_items: item_index runs from 0 to num_items - 1.
        num_users: user_index runs from 0 to num_users - 1.
        items: Columns as in items.parquet; row = item_index.
        interactions: Columns as in interactions.parquet; sorted by user, then time.
        queries: Columns as in queries.parquet.
        description: Content of corpus.json.
    """

    folder: Path
    fingerprint: str
    num_items: int
    num_users: int
    items: Dataset
    interactions: Dataset
    queries: Dataset
    description: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = False) -> "Corpus":
        """Open a corpus directory.

        The first load writes memory-mapped copies under ``.cache`` in the folder, or in the
        user's cache where the folder is read-only. Several processes may do so at once.

        Args:
            folder: Corpus directory, as ``sidrec prepare`` writes it.
            verify: Also compare the sha256 of every file with corpus.json; reads all of them.

        Raises:
            DataError: If a file is missing, truncated, of another schema or of another corpus.
        """
        folder = Path(folder)
        description = _read_description(folder)
        for name in SCHEMAS:
            _check_table(folder / f"{name}.parquet", description)
            if verify:
                _check_sha256(folder / f"{name}.parquet", description)
        cache = derived_folder(folder, description["fingerprint"])
        tables = {
            name: Dataset.from_file(str(arrow_file(cache, folder / f"{name}.parquet")))
            for name in SCHEMAS
        }
        return cls(
            folder=folder,
            fingerprint=description["fingerprint"],
            num_items=description["counts"]["items"],
            num_users=description["counts"]["users"],
            description=description,
            **tables,
        )

    @property
    def exclude_history(self) -> bool:
        """Whether items of a user's history are left out of the user's recommendations."""
        return bool(self.description["settings"]["exclude_history"])

    @classmethod
    def from_frames(
        cls,
        items: Any,  # noqa: ANN401 (no common class exists)
        interactions: Any = None,  # noqa: ANN401
        queries: Any = None,  # noqa: ANN401
        *,
        folder: Path | str | None = None,
        settings: BuildSettings = DEFAULT_BUILD,
    ) -> "Corpus":
        """Build a corpus from tables in memory, and open it.

        Each table is a pandas or polars DataFrame, an Arrow table, a ``datasets.Dataset``, or the
        name of a data set on the hub (``OWNER/NAME``, ``OWNER/NAME:CONFIGURATION``).

        Args:
            items: Columns item_id, title, text; others become attributes. Without text, it is built
                from the title and what describes the item.
            interactions: Columns user_id, item_id, timestamp, and optionally rating. None builds a
                corpus for search alone.
            queries: Columns query_id, query, item_ids (lists), and optionally group, split and
                grades (lists). None builds a corpus for recommendation alone.
            folder: Folder of the corpus; an older corpus there is replaced. None takes a temporary
                folder, which is removed when Python ends.
            settings: Splits and filters.

        Raises:
            ConfigError: If a table is of an unknown kind, or ``folder`` holds something else.
            DataError: If a table lacks a column or holds values that cannot be read.
        """
        from sidrec.corpus.build.build_corpus import build_corpus
        from sidrec.corpus.sources.frames import read_frames

        if folder is None:
            folder = Path(mkdtemp(prefix="sidrec-corpus-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with TemporaryDirectory(prefix="sidrec-") as scratch:
            raw, found = read_frames(items, interactions, queries, Path(scratch))
            build_corpus(raw, found, Path(folder), settings)
        return cls.load(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus.load, (self.folder,)  # a worker process maps the files again

    def item_texts(self) -> list[str]:
        """Return the text of each item, as the encoder reads it; row = item_index."""
        return self._strings("text")

    def item_text_column(self) -> ColumnStrings:
        """Return the item texts as a memory-mapped column, for catalogues of any size."""
        return ColumnStrings(self.items.data.column("text"))

    def item_ids(self) -> list[str]:
        """Return the catalogue's own id of each item; row = item_index."""
        return self._strings("item_id")

    def item_titles(self) -> list[str]:
        """Return the title of each item; row = item_index."""
        return self._strings("title")

    def train_interactions(self) -> Interactions:
        """Return the train interactions; no other method returns ``Interactions``."""
        arrays = self._arrays
        return Interactions(
            arrays["train_user_index"],
            arrays["train_item_index"],
            arrays["train_timestamp"],
            arrays["train_user_starts"],
            arrays.get("train_weight"),
        )

    def timelines(self) -> Timelines:
        """Return all rows of interactions.parquet, for evaluation requests and leakage checks."""
        arrays = self._arrays
        return Timelines(arrays["item_index"], arrays["split"], arrays["user_starts"])

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        cache = derived_folder(self.folder, self.fingerprint)
        return interaction_arrays(cache, self.interactions.data.table, self.num_users)

    def _strings(self, column: str) -> list[str]:
        values: list[str] = self.items.data.column(column).to_pylist()
        return values


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / "corpus.json"
    if not file.exists():
        raise DataError(f"{folder} is not a corpus: it has no corpus.json; run sidrec prepare.")
    description = read_json(file)
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema_version {version}, expected {SCHEMA_VERSION}; "
            "run sidrec prepare again with this version of sidrec."
        )
    missing = {"fingerprint", "counts", "settings", "sha256"} - description.keys()
    if missing:
        raise DataError(f"{file} lacks {sorted(missing)}; run sidrec prepare again.")
    return dict(description)


def _check_table(file: Path, description: dict[str, Any]) -> None:
    if not file.exists():
        raise DataError(f"{file} is missing; run sidrec prepare again.")
    try:
        metadata = pq.read_metadata(file)
        found = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file} is damaged: {reason} Run sidrec prepare again.") from None
    for field in SCHEMAS[file.stem]:
        if field.name not in found.names or found.field(field.name).type != field.type:
            raise DataError(
                f"{file} has no column '{field.name}' of type {field.type}; "
                "run sidrec prepare again."
            )
    expected = description["counts"][file.stem]
    if metadata.num_rows != expected:
        raise DataError(
            f"{file} has {metadata.num_rows} rows, corpus.json says {expected}; "
            "run sidrec prepare again."
        )


def _check_sha256(file: Path, description: dict[str, Any]) -> None:
    if sha256_of_file(file) != description["sha256"].get(file.name):
        raise DataError(f"{file} differs from its hash in corpus.json; run sidrec prepare again.")


def popularity(interactions: Interactions, num_items: int) -> Int64[Tensor, " item"]:
    """Count the train interactions of each item.

    Args:
        interactions: Result of ``Corpus.train_interactions``; other types are refused, so that no
            test row can enter.
        num_items: Size of the catalogue; items without interactions count 0.

    Raises:
        DataError: If the rows are not train interactions, or an item is outside the catalogue.
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
