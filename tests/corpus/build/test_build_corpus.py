import errno
import json
from dataclasses import replace

import polars as pl
import pytest

from sidrec.corpus import schema as contents
from sidrec.corpus.build import build_corpus as build
from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.errors import ConfigError, DataError, SidrecError
from tests.corpus.small import QUERIES, ROWS, SETTINGS, build_small, raw_catalogue


def rows_of(folder, *columns):
    return pl.read_parquet(folder / "interactions.parquet").select(columns).rows()


def test_small_corpus_by_hand(tmp_path):
    description = build_small(tmp_path / "out")
    # users by first appearance: b, a, c; b's tie at moment 5 keeps the order of the source
    assert rows_of(
        tmp_path / "out", "user_index", "user_id", "item_index", "timestamp", "split"
    ) == [
        (0, "b", 0, 1, "train"),
        (0, "b", 1, 5, "valid"),
        (0, "b", 2, 5, "test"),
        (1, "a", 1, 10, "train"),
        (1, "a", 2, 20, "train"),
        (1, "a", 0, 30, "valid"),
        (1, "a", 3, 40, "test"),
        (2, "c", 0, 7, "train"),  # fewer than three: all train
        (2, "c", 1, 8, "train"),
    ]
    queries = pl.read_parquet(tmp_path / "out" / "queries.parquet")
    assert queries.select("query_id", "item_index", "split").rows() == [
        ("q1", [0], "train"),
        ("q2", [0], "train"),
        ("q3", [1, 2], "test"),
        ("q4", [3], "valid"),
    ]
    counts = description["counts"]
    assert (counts["items"], counts["users"], counts["interactions"]) == (4, 3, 9)
    assert counts["interactions_out_of_order"] == 2  # a: 30 then 10; b: 5 then 1
    assert json.loads((tmp_path / "out" / "corpus.json").read_text()) == json.loads(
        json.dumps(description)
    )


def test_schema_is_the_contract(tmp_path):
    build_small(tmp_path / "out")
    assert pl.read_parquet_schema(tmp_path / "out" / "items.parquet") == {
        "item_index": pl.Int64,
        "item_id": pl.String,
        "title": pl.String,
        "text": pl.String,
        "genres": pl.List(pl.String),
    }
    assert pl.read_parquet_schema(tmp_path / "out" / "interactions.parquet") == {
        "user_index": pl.Int64,
        "user_id": pl.String,
        "item_index": pl.Int64,
        "timestamp": pl.Int64,
        "rating": pl.Float32,
        "split": pl.String,
    }
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "corpus.json",
        "interactions.parquet",
        "items.parquet",
        "queries.parquet",
    ]


def test_result_does_not_depend_on_how_many_rows_are_sorted_at_once(tmp_path, monkeypatch):
    whole = build_small(tmp_path / "whole")
    monkeypatch.setattr(build, "_ROWS_AT_ONCE", 1)
    parts = build_small(tmp_path / "parts")
    assert parts["fingerprint"] == whole["fingerprint"]
    assert parts["counts"] == whole["counts"]
    assert rows_of(tmp_path / "parts", "user_id", "item_index") == rows_of(
        tmp_path / "whole", "user_id", "item_index"
    )


def test_fingerprint_says_what_is_inside_and_nothing_else(tmp_path, monkeypatch):
    first = build_small(tmp_path / "one")["fingerprint"]
    monkeypatch.setattr(contents, "ROWS_PER_GROUP", 2)
    assert build_small(tmp_path / "elsewhere" / "two")["fingerprint"] == first
    renamed = [("b", "i2", 6), *ROWS[1:]]
    assert build_small(tmp_path / "three", rows=renamed)["fingerprint"] != first
    assert build_small(tmp_path / "four", queries=QUERIES[:3])["fingerprint"] != first


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(contents, "ROWS_PER_GROUP", 4)
    build_small(tmp_path / "out")
    assert pq.read_metadata(tmp_path / "out" / "interactions.parquet").num_row_groups == 3


def test_items_with_too_few_interactions_go_with_their_rows_and_queries(tmp_path):
    settings = replace(SETTINGS, min_item_interactions=3)
    description = build_corpus(raw_catalogue(), QUERIES, tmp_path / "out", settings)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["item_id"].to_list() == ["i1", "i2"]  # i3 has two, i4 one
    assert description["counts"]["interactions"] == 6
    assert description["counts"]["queries_without_items"] == 1  # q4
    q3 = pl.read_parquet(tmp_path / "out" / "queries.parquet").filter(pl.col("query_id") == "q3")
    assert q3["item_index"].to_list() == [[1]]


def test_unknown_items_can_be_dropped(tmp_path):
    settings = replace(SETTINGS, unknown_items="drop")
    rows = [*ROWS, ("a", "nowhere", 50)]
    queries = [*QUERIES, RawQuery("q5", "nothing", ("nowhere",), "g5", "", "tests")]
    counts = build_corpus(raw_catalogue(rows), queries, tmp_path / "out", settings)["counts"]
    assert counts["unknown_interactions"] == 1
    assert counts["interactions"] == 9
    assert counts["queries_without_items"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [*ROWS, ("a", "nowhere", 50)]}, r"ratings.csv row 10: item_id 'nowhere' is not"),
        (
            {"rows": [("a", "i1", 1), ("", "i1", 2)]},
            r"ratings.csv row 2: column 'user_id' is empty",
        ),
        ({"rows": [("a", "i1", None)]}, r"ratings.csv row 1: column 'timestamp' is empty or no n"),
        ({"rows": []}, r"ratings.csv has no interactions"),
        (
            {"item_ids": ("i1", "i2", "i1")},
            r"items.csv row 3: item_id 'i1' was already used in row 1",
        ),
        ({"item_ids": ("i1", "")}, r"items.csv row 2: column 'item_id' is empty"),
        ({"item_ids": ()}, r"items.csv has no items"),
    ],
)
def test_bad_catalogue_is_refused_by_row(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        build_small(tmp_path / "out", **change)
    assert list(tmp_path.iterdir()) == []


def test_empty_text_and_nan_rating_are_refused_by_row(tmp_path):
    raw = raw_catalogue()
    empty = raw.items.with_columns(text=pl.Series(["a", "b", "  ", "d"]))
    with pytest.raises(DataError, match=r"items.csv row 3: column 'text' is empty"):
        build_corpus(raw._replace(items=empty), [], tmp_path / "out", SETTINGS)
    third = pl.when(pl.int_range(pl.len()) == 2).then(float("nan")).otherwise(1.0)
    nan = raw.interactions.with_columns(rating=third.cast(pl.Float32))
    with pytest.raises(DataError, match=r"ratings.csv row 3: column 'rating' is NaN"):
        build_corpus(raw._replace(interactions=nan), [], tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (("q1", "again", ("i1",)), r"Query 'q1' of tests has a query_id that was already used"),
        (("q9", " ", ("i1",)), r"Query 'q9' of tests has an empty text"),
        (("q9", "what", ()), r"Query 'q9' of tests names no item"),
        (
            ("q9", "what", ("zz",)),
            r"Query 'q9' of tests names item_id 'zz', which is not in items\.csv; add the item",
        ),
    ],
)
def test_bad_query_is_refused_by_id(tmp_path, query, message):
    bad = RawQuery(*query, "g9", "", "tests")
    with pytest.raises(DataError, match=message):
        build_small(tmp_path / "out", queries=[*QUERIES, bad])


@pytest.mark.parametrize("where", ["TableWriter.write", "write_json"])
def test_full_disk_leaves_the_old_corpus_and_nothing_else(tmp_path, monkeypatch, where):
    out = tmp_path / "out"
    build_small(out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"sidrec.corpus.build.build_corpus.{where}", full)
    with pytest.raises(SidrecError, match=r"out cannot be written: No space left on device; free"):
        build_small(out, rows=ROWS[:5])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_folder_that_is_no_corpus_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"exists and is not a corpus"):
        build_small(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"min_item_interactions": -1},
        {"valid_query_fraction": 1.0},
        {"test_query_fraction": -0.1},
        {"temporal_fractions": (0.6, 0.5)},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        BuildSettings(
            **{**{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__}, **change}
        )
