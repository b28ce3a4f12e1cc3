"""Interactions divided by user into pieces that fit in memory, in one pass."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_OF_A_BATCH = 1 << 20


def pieces_by_user(
    kept: Path, users: pl.DataFrame, folder: Path, *, rows_at_once: int
) -> Iterator[pl.DataFrame]:
    """Yield all interactions in pieces of whole users, ordered by user, then row.

    The file is read once and every row is written once more, for any number of pieces.

    Args:
        kept: Parquet file with row, user_id, item_index, timestamp, rating (and more).
        users: Columns user_index (0, 1, …), user_id, num_rows.
        folder: Folder of the pieces until they are read.
        rows_at_once: A piece ends with the user whose rows reach the next multiple of this number,
            so the rows of one user may make it larger.

    Yields:
        The columns of ``kept`` and user_index.
    """
    before = (users["num_rows"].cum_sum() - users["num_rows"]).to_numpy() // rows_at_once
    first_users = np.flatnonzero(np.diff(before, prepend=-1))
    scan = pl.scan_parquet(kept, glob=False, hive_partitioning=False).join(
        users.lazy().select("user_id", "user_index"), on="user_id", how="inner"
    )
    if len(first_users) == 1:
        yield scan.collect(engine="streaming").sort("user_index", "row")
        return
    indexed = folder / "indexed.parquet"
    scan.drop("user_id").sink_parquet(
        indexed, compression="lz4", row_group_size=1 << 18, engine="streaming"
    )
    kept.unlink()
    files = [folder / f"piece-{number:06d}.arrow" for number in range(len(first_users))]
    _part(indexed, first_users, files)
    indexed.unlink()
    for file in files:
        rows = pl.read_ipc_stream(file).sort("user_index", "row")
        file.unlink()
        first, last = int(rows["user_index"][0]), int(rows["user_index"][-1])
        own = users[first : last + 1].select("user_index", "user_id")
        yield rows.join(own, on="user_index", how="left", maintain_order="left")


def _part(indexed: Path, first_users: np.ndarray, files: list[Path]) -> None:
    """Append every row to the file of its user's piece."""
    with pq.ParquetFile(indexed) as source, ExitStack() as stack:
        streams = [
            stack.enter_context(pa.ipc.new_stream(str(file), source.schema_arrow)) for file in files
        ]
        for batch in source.iter_batches(batch_size=_ROWS_OF_A_BATCH):
            user = batch.column("user_index").to_numpy()
            piece = np.searchsorted(first_users, user, side="right") - 1
            order = np.argsort(piece, kind="stable")
            batch = batch.take(pa.array(order))
            ends = np.cumsum(np.bincount(piece, minlength=len(files)))
            for stream, first, end in zip(streams, np.append(0, ends), ends, strict=False):
                if end > first:
                    stream.write_batch(batch.slice(first, end - first))
