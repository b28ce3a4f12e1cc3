"""What preparing and drawing hold in memory, measured in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.corpus.build.partition import pieces_by_user
from sidrec.corpus.sources import splits

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare_memory.py"


def measured(folder, interactions, items, *steps):
    """Return the figures of ``benchmarks/prepare_memory.py`` for one size."""
    words = ["--sizes", f"{interactions}x{items}", "--steps", *steps]
    words += ["--scratch", folder, "--output", folder / "found.json"]
    words += ["--vectors_in_memory_mib", "0"]
    subprocess.run([sys.executable, SCRIPT, *words], check=True, capture_output=True)
    (found,) = json.loads((folder / "found.json").read_text())["results"].values()
    return found


def test_a_million_interactions_take_little_memory(tmp_path):
    found = measured(tmp_path, 1_000_000, 10_000, "make", "prepare")
    assert found["prepare"]["peak_anonymous_mib"] < 550


@pytest.mark.slow
def test_a_million_items_and_ten_million_interactions_stay_below_the_stated_limits(tmp_path):
    """The limits are those of docs/scaling.md."""
    steps = ("make", "prepare", "temporal", "draw", "encode")
    found = measured(tmp_path, 10_000_000, 1_000_000, *steps)
    peaks = {step: found[step]["peak_anonymous_mib"] for step in steps}
    assert max(peaks["prepare"], peaks["temporal"]) < 2_100
    assert peaks["draw"] < 250  # the rows are memory-mapped
    assert peaks["encode"] < 1_000  # the vectors are in a file


def test_pieces_hold_whole_users_in_order_and_nothing_is_lost(tmp_path):
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {"user": rng.integers(50, size=2_000), "item_index": rng.integers(9, size=2_000)}
    )
    rows = (
        rows.with_row_index("row")
        .with_columns(pl.format("u{}", "user").alias("user_id"))
        .drop("user")
    )
    rows.write_parquet(tmp_path / "kept.parquet")
    users = rows.group_by("user_id").agg(pl.col("row").min(), pl.len().alias("num_rows"))
    users = users.sort("row").drop("row").with_row_index("user_index")
    found = list(pieces_by_user(tmp_path / "kept.parquet", users, tmp_path, rows_at_once=300))
    assert 5 < len(found) < 9
    assert max(piece.height for piece in found) < 300 + users["num_rows"].max()
    together = pl.concat(found).select("user_index", "row", "user_id", "item_index")
    assert together.equals(together.sort("user_index", "row"))
    assert (
        together.drop("user_index").sort("row").equals(rows.select("row", "user_id", "item_index"))
    )
    assert not list(tmp_path.iterdir())  # pieces are gone once they are read


def test_a_moment_is_found_as_sorting_would_find_it(monkeypatch):
    monkeypatch.setattr(splits, "_COUNTS", 3)
    rng = np.random.default_rng(0)
    moments = [*rng.integers(-1_000, 1_000, size=200).tolist(), 2**63 - 1, -(2**63), 7, 7, 7]
    frame = pl.LazyFrame({"timestamp": pl.Series(moments, dtype=pl.Int64)})
    for row in (0, 1, 17, 100, 101, 150, 203, 204):
        assert splits._smallest(frame, row) == sorted(moments)[row]
