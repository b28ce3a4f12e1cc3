"""Memory-mapped copies of a corpus: written once from its Parquet files, safe to delete."""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Num

from sidrec.corpus.schema import SPLITS
from sidrec.errors import SidrecError
from sidrec.files import atomic_file, disk_errors

Array = Num[np.ndarray, " _"]

_ROWS_AT_ONCE = 131_072
_ADVICE = "free space: it holds memory-mapped copies of the corpus, about five times its size."
_ROW_ARRAYS: dict[str, type] = {
    "item_index": np.int64,
    "split": np.int8,
    "train_user_index": np.int64,
    "train_item_index": np.int64,
    "train_timestamp": np.int64,
}
_WEIGHT: dict[str, type] = {
    "train_weight": np.float32
}  # only where interactions.parquet has weights
_ARRAYS = {**_ROW_ARRAYS, "user_starts": np.int64, "train_user_starts": np.int64}


def user_cache_folder() -> Path:
    """Return the cache folder of sidrec: ``SIDREC_CACHE`` or ``~/.cache/sidrec``."""
    chosen = os.environ.get("SIDREC_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidrec"


def derived_folder(corpus: Path, fingerprint: str) -> Path:
    """Return a writable cache folder of a corpus: inside the corpus, else in the user's cache."""
    for folder in (corpus / ".cache", user_cache_folder() / "corpora"):
        own = folder / fingerprint[:16]
        try:
            own.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(own, os.W_OK):
            return own
    raise SidrecError(
        f"Neither {corpus / '.cache'} nor {user_cache_folder()} can be written; a corpus needs one "
        "of them for its memory-mapped copies: set SIDREC_CACHE to a folder that can be."
    )


def arrow_file(folder: Path, parquet: Path) -> Path:
    """Return the Arrow stream of a Parquet file; the first call writes it.

    Many processes may call this at once: each writes its own file and renames it. The contents are
    equal, so any of the files may remain.
    """
    target = folder / f"{parquet.stem}.arrow"
    if not target.exists():
        with disk_errors(folder, _ADVICE), atomic_file(target) as temporary:
            _write_stream(parquet, temporary)
    return target


def _write_stream(parquet: Path, target: Path) -> None:
    with (
        pq.ParquetFile(parquet) as source,
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_stream(sink, source.schema_arrow) as stream,
    ):
        for batch in source.iter_batches(batch_size=_ROWS_AT_ONCE):
            stream.write_batch(batch)


def interaction_arrays(folder: Path, interactions: pa.Table, num_users: int) -> dict[str, Array]:
    """Return read-only memory-mapped arrays of the interactions; the first call writes them.

    Args:
        folder: Folder of the arrays.
        interactions: Table sorted by user; read one record batch at a time.
        num_users: user_index runs from 0 to num_users - 1.

    Returns:
        ``item_index``, ``split`` (position in ``SPLITS``), ``user_starts`` of all rows, and
        ``train_user_index``, ``train_item_index``, ``train_timestamp``, ``train_user_starts``,
        and ``train_weight`` where the interactions have weights.
    """
    names = [*_ARRAYS, *(_WEIGHT if "weight" in interactions.column_names else ())]
    if not all((folder / f"{name}.npy").exists() for name in names):
        with disk_errors(folder, _ADVICE):
            _write_arrays(folder, interactions, num_users)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def _write_arrays(folder: Path, interactions: pa.Table, num_users: int) -> None:
    num_train = pc.sum(pc.equal(interactions["split"], "train")).as_py() or 0
    num_rows, own = interactions.num_rows, ["user_index", "item_index", "timestamp"]
    rows = _ROW_ARRAYS
    if "weight" in interactions.column_names:
        own, rows = [*own, "weight"], {**_ROW_ARRAYS, **_WEIGHT}
    with ExitStack() as files:

        def new(name: str, length: int) -> Array:
            target = files.enter_context(atomic_file(folder / f"{name}.npy"))
            return np.lib.format.open_memmap(
                target, "w+", dtype=np.dtype({**_ARRAYS, **_WEIGHT}[name]), shape=(length,)
            )

        lengths = {"item_index": num_rows, "split": num_rows}
        arrays = {name: new(name, lengths.get(name, num_train)) for name in rows}
        per_user = {
            name: np.zeros(num_users + 1, np.int64) for name in ("user_starts", "train_user_starts")
        }
        row = train_row = 0
        for batch in interactions.to_batches():
            columns = {name: batch.column(name).to_numpy() for name in own}
            split = pc.index_in(batch.column("split"), pa.array(SPLITS)).to_numpy()
            train = split == 0
            arrays["item_index"][row : row + len(split)] = columns["item_index"]
            arrays["split"][row : row + len(split)] = split
            end = train_row + int(train.sum())
            for name, values in columns.items():
                arrays[f"train_{name}"][train_row:end] = values[train]
            users = columns["user_index"]
            per_user["user_starts"][1:] += np.bincount(users, minlength=num_users)
            per_user["train_user_starts"][1:] += np.bincount(users[train], minlength=num_users)
            row, train_row = row + len(split), end
        for name, counts in per_user.items():
            arrays[name] = new(name, num_users + 1)
            arrays[name][:] = np.cumsum(counts)
        arrays.clear()  # unmapping writes what is still in memory
