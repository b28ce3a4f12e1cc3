"""Tables in memory: pandas, polars, Arrow, or data sets of the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.corpus.reading.column_names import DEFAULT_COLUMNS
from sidrec.corpus.reading.shards import Shards
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery, no_interactions
from sidrec.corpus.sources.user_tables import read_items, read_query_table, scan_interactions
from sidrec.errors import ConfigError, DataError

_LICENSE = "the user's own data; its terms are not known to sidrec"


def arrow_table(frame: Any, name: str) -> pa.Table:  # noqa: ANN401 (no common class exists)
    """Return a table of any library as an Arrow table.

    Args:
        frame: A pandas or polars DataFrame, an Arrow table, anything with the Arrow stream
            protocol, a ``datasets.Dataset``, or the name of one: ``OWNER/NAME``,
            ``OWNER/NAME:CONFIGURATION``, or a local folder.
        name: Name of the table, for messages.

    Raises:
        ConfigError: If the kind of ``frame`` is unknown, or a data set has several splits.
        DataError: If the values have no Arrow type.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(frame, str):
        frame = _load(frame, name)
    if isinstance(frame, DatasetDict):
        if len(frame) != 1:
            raise ConfigError(
                f"{name}: the data set has the splits {', '.join(frame)}; give one of them, "
                "for instance load_dataset(...)['train']."
            )
        frame = next(iter(frame.values()))
    if isinstance(frame, Dataset):
        frame = frame.with_format("arrow")[:]
    module = type(frame).__module__.partition(".")[0]
    if module != "pandas" and not hasattr(frame, "__arrow_c_stream__"):
        raise ConfigError(
            f"{name} is a {module}.{type(frame).__name__}; give a pandas or polars DataFrame, an "
            "Arrow table, or a data set or its name."
        )
    try:
        if module == "pandas":
            return pa.Table.from_pandas(frame, preserve_index=False)
        return pa.table(frame)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"{name}: {error}; give each column values of one type.") from None


def _load(dataset: str, name: str) -> Any:  # noqa: ANN401
    from datasets import load_dataset

    path, configuration = dataset, None
    if not Path(dataset).exists():
        path, _, configuration = dataset.partition(":")
    try:
        return load_dataset(path, configuration or None)
    except Exception as error:  # hub, network and file formats raise their own errors
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: data set '{dataset}' cannot be loaded ({reason}); check the name, or load it "
            "yourself and give the object."
        ) from None


def read_frames(
    items: Any,  # noqa: ANN401
    interactions: Any,  # noqa: ANN401
    queries: Any,  # noqa: ANN401
    scratch: Path,
) -> tuple[RawCatalogue, list[RawQuery]]:
    """Read tables in memory as ``sidrec prepare table`` reads files of the same columns.

    Args:
        items: Columns item_id, title, text; others become attributes.
        interactions: Columns user_id, item_id, timestamp, and optionally rating. None makes a
            corpus for search alone.
        queries: Columns query_id, query, item_ids (lists, or text separated by ``|``), and
            optionally group, split and grades. None makes a corpus for recommendation alone.
        scratch: Folder for copies of the tables; it must last until the corpus is built.

    Raises:
        ConfigError: If a table is of an unknown kind.
        DataError: If a table lacks a column or holds values that cannot be read.
    """
    files = {}
    for name, frame in (("items", items), ("interactions", interactions), ("queries", queries)):
        if frame is not None:
            files[name] = Shards(name, [scratch / f"{name}.parquet"])
            pq.write_table(arrow_table(frame, name), files[name].files[0])
    logged = files.get("interactions")
    raw = RawCatalogue(
        read_items(files["items"]),
        _interactions(logged) if logged else no_interactions(),
        "items",
        "interactions" if logged else "",
        source="frames",
        license=_LICENSE,
    )
    if queries is None:
        return raw, []
    with _queries_named(scratch):
        found = read_query_table(files["queries"].files[0])
    return raw, [query._replace(place=_shortened(query.place, scratch)) for query in found]


@contextmanager
def _queries_named(scratch: Path) -> Iterator[None]:
    """Remove the temporary folder from the messages of the query file reader."""
    try:
        yield
    except DataError as error:
        raise DataError(_shortened(str(error), scratch)) from None


def _shortened(text: str, scratch: Path) -> str:
    return text.replace(f"{scratch / 'queries.parquet'}", "queries")


def _interactions(table: Shards) -> pl.LazyFrame:
    return scan_interactions(table, DEFAULT_COLUMNS, "auto", None, [])[0]
