"""Kinds of input that were once read wrong in silence; each is right or refused by row."""

import bz2
import gzip
import json
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.corpus.reading.times import read_times
from sidrec.corpus.requests import is_answerable, recommendation_requests
from sidrec.corpus.sources.user_tables import read_query_table, read_table
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from tests.tiny import sidrec

ITEMS = "item_id,title,text\na,A,Item a.\nb,B,Item b.\nc,C,Item c.\nd,D,Item d.\n"
EVENTS = "user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n"


def prepare(folder, items=ITEMS, events=EVENTS, names=("items.csv", "events.csv"), more=()):
    for name, content in zip(names, (items, events), strict=True):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    files = ("--items", folder / names[0], "--interactions", folder / names[1])
    return sidrec("prepare", "table", *files, "--out", folder / "out", *more)


def order(folder):
    rows = pl.read_parquet(folder / "out" / "interactions.parquet", glob=False)
    ids = Corpus.load(folder / "out").item_ids()
    return "".join(ids[item] for item in rows["item_index"])


@pytest.mark.parametrize(
    "times",
    [
        ["1577934245.9", "1577934245.6", "1577934245.3", "1577934245.1"],
        ["1577934245004", "1577934245003", "1577934245002", "1577934245001"],
        [f"157793424500000000{place}" for place in (4, 3, 2, 1)],
        [f"2020-01-02T03:04:05.00000000{place}Z" for place in (4, 3, 2, 1)],
        [
            "2020-01-02T03:04:05+00:00",
            "2020-01-02T04:04:04+01:00",
            "2020-01-02 03:04",
            "2020-01-02",
        ],
    ],
)
def test_events_are_ordered_by_the_full_precision(tmp_path, times):
    rows = "".join(f"u,{item},{time}\n" for item, time in zip("dcba", times, strict=True))
    assert prepare(tmp_path, events="user_id,item_id,timestamp\n" + rows) == 0
    assert order(tmp_path) == "abcd"


@given(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), st.integers(-14, 14))
def test_a_moment_means_the_same_in_every_writing(moment, hours):
    zoned = moment.replace(tzinfo=UTC)
    there = zoned.astimezone(timezone(timedelta(hours=hours))).isoformat()
    since = (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for values in ([there], [moment.isoformat(" ")], [zoned]):
        frame = pl.LazyFrame({"t": values})
        times = read_times(frame, "t", "auto", "x")
        assert frame.select(times.nanoseconds).collect().item() == since * 1000


def test_units_that_mix_are_refused_and_may_be_told(tmp_path, capsys):
    events = EVENTS.replace(",1\n", ",1577934245\n").replace(",2\n", ",1577934246000\n")
    assert prepare(tmp_path, events=events) == 3
    assert "row 1 looks like seconds, row 2 like milliseconds" in capsys.readouterr().err
    assert prepare(tmp_path, events=events, more=("--timestamps", "ms")) == 0


def test_rows_may_be_the_order(tmp_path, capsys):
    events = "user_id,item_id\nu,c\nu,a\nu,b\n"
    assert prepare(tmp_path, events=events) == 3
    assert "--timestamps position" in capsys.readouterr().err
    assert prepare(tmp_path, events=events, more=("--timestamps", "position")) == 0
    assert order(tmp_path) == "cab"


def test_ties_are_counted(tmp_path, capsys):
    assert prepare(tmp_path, events=EVENTS.replace(",2\n", ",1\n")) == 0
    assert "interactions of one user at one moment: 2" in capsys.readouterr().err


def test_a_tsv_has_no_quoting(tmp_path):
    items = 'item_id\ttitle\n1\tPipe\n3\t"Quick fix tape\n4\tHammer\n6\tBelt 34"\n7\t"Big" nail\n'
    (tmp_path / "items.tsv").write_text(items)
    (tmp_path / "events.csv").write_text(EVENTS)
    raw = read_table(tmp_path / "items.tsv", tmp_path / "events.csv")
    assert raw.items["title"].to_list() == [
        "Pipe", '"Quick fix tape', "Hammer", 'Belt 34"', '"Big" nail'
    ]  # fmt: skip
    assert raw.item_files[0][1:] == (5, 6)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ('e,Belt 34" long,x', "row 5 has a quotation mark inside a value"),
        ('e,"Belt" long,x', "row 5 has a quotation mark inside a value"),
        ('e,"Belt,x\nf,F,Item f.', "row 5 has a value whose quotation mark is never closed"),
        ("e,E", "row 5 has 2 values, expected 3"),
        ("e,E,x,y", "row 5 has 4 values, expected 3"),
    ],
)
def test_a_row_that_breaks_the_rules_is_named(tmp_path, capsys, row, text):
    assert prepare(tmp_path, items=f"{ITEMS}{row}\ng,G,Item g.\n") == 3
    assert f"items.csv {text}" in capsys.readouterr().err


def test_quoted_values_are_read_as_rfc_4180_says(tmp_path):
    (tmp_path / "items.csv").write_bytes(
        b'\xef\xbb\xbf"item_id",title,code\r\n'
        b'007,"A ""b"", c\r\nd",1.10\r\n12345678901234567890,E,2\r\n'
    )
    (tmp_path / "events.csv").write_text(EVENTS)
    raw = read_table(tmp_path / "items.csv", tmp_path / "events.csv")
    assert raw.items.select("item_id", "title", "code").rows() == [
        ("007", 'A "b", c d', "1.10"),
        ("12345678901234567890", "E", "2"),
    ]


def test_a_path_that_exists_is_that_file(tmp_path, capsys):
    folder = tmp_path / "day=2020-01-01 [x]*"
    folder.mkdir()
    (folder / "logs1.csv").write_text("user_id,item_id,timestamp\nother,c,1\n")
    assert prepare(folder, names=("items?.csv", "logs[1].csv")) == 0
    assert Corpus.load(folder / "out").interactions["user_id"][0] == "u"
    assert f"read: {folder / 'logs[1].csv'}" in capsys.readouterr().err


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress),
    ("zst", lambda data: pa.Codec("zstd").compress(data, asbytes=True))])  # fmt: skip
def test_compressed_tables_in_several_files(tmp_path, ending, pack):
    extra = tmp_path / f"more.csv.{ending}"
    extra.write_bytes(pack(b"user_id,item_id,timestamp\nu,d,4\n"))
    names = (f"items.csv.{ending}", f"events.csv.{ending}")
    for name, text in zip(names, (ITEMS, EVENTS), strict=True):
        (tmp_path / name).write_bytes(pack(text.encode()))
    files = ("--items", tmp_path / names[0], "--interactions", tmp_path / names[1], extra)
    assert sidrec("prepare", "table", *files, "--out", tmp_path / "out") == 0
    assert order(tmp_path) == "abcd"


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '[1, {"x": NaN}]', "1e999"])
def test_numbers_that_json_lacks_are_named(tmp_path, capsys, value):
    row = f'{{"item_id": "b", "title": "B", "price": {value}}}'
    items = '{"item_id": "a", "title": "A"}\n' + row
    assert prepare(tmp_path, items=items, names=("items.jsonl", "events.csv")) == 3
    assert "items.jsonl, line 2" in capsys.readouterr().err


def test_json_keeps_spelling_and_late_columns(tmp_path):
    lines = [f'{{"item_id": {number}, "title": "T{number}"}}' for number in range(150)]
    lines += ['{"item_id": 1.10, "title": "x", "late": 5, "big": 99999999999999999999}']
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "events.csv").write_text(EVENTS)
    raw = read_table(tmp_path / "items.jsonl", tmp_path / "events.csv")
    assert raw.items.row(150, named=True)["item_id"] == "1.10"
    assert raw.items["late"].to_list() == [None] * 150 + [5]
    assert raw.items["big"][150] == "99999999999999999999"


def test_bytes_of_parquet_are_decoded_or_refused(tmp_path):
    items = pl.DataFrame({"item_id": [b"00", b"01"], "title": ["A", "B"], "n": [2**63, 1]})
    items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "events.csv").write_text(EVENTS)
    raw = read_table(tmp_path / "items.parquet", tmp_path / "events.csv")
    assert raw.items["item_id"].to_list() == ["00", "01"]
    assert raw.items["n"].to_list() == ["9223372036854775808", "1"]
    items.with_columns(item_id=pl.Series([b"00", b"\xff"])).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad.parquet row 2: column 'item_id' holds bytes"):
        read_table(tmp_path / "bad.parquet", tmp_path / "events.csv")


def test_one_number_is_no_list_of_answers(tmp_path):
    frame = pl.DataFrame({"query_id": ["q"], "query": ["x"], "item_ids": [7]})
    frame.write_parquet(tmp_path / "queries.parquet")
    with pytest.raises(DataError, match=r"queries.parquet row 1: item_ids is 7, expected a list"):
        read_query_table(tmp_path / "queries.parquet")


def test_a_log_of_queries_is_told_from_queries(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,query,item_ids\nu,x,a\n")
    with pytest.raises(DataError, match="it is a log, not a list of queries"):
        read_query_table(tmp_path / "log.csv")


def test_columns_may_have_other_names(tmp_path):
    items, events = ITEMS.replace("item_id", "sku"), EVENTS.replace("item_id", "sku")
    more = ("--columns.item_id", "sku", "--columns.timestamp", "when")
    assert prepare(tmp_path, items, events.replace("timestamp", "when"), more=more) == 0
    assert order(tmp_path) == "abc"


def test_the_title_is_part_of_the_text_and_lists_of_lists_are_words(tmp_path):
    row = {"item_id": "a", "title": "Balm", "categories": [["Beauty", "Hair"], ["Skin"]]}
    (tmp_path / "items.jsonl").write_text(json.dumps(row))
    (tmp_path / "events.csv").write_text(EVENTS)
    raw = read_table(tmp_path / "items.jsonl", tmp_path / "events.csv")
    assert raw.items["text"].to_list() == ["Balm. Beauty, Hair, Skin"]
    (tmp_path / "items.csv").write_text("item_id,title,text\na,Balm,For dry skin.\n")
    raw = read_table(tmp_path / "items.csv", tmp_path / "events.csv")
    assert raw.items["text"].to_list() == ["Balm. For dry skin."]


@pytest.mark.parametrize(
    ("choice", "titles"),
    [("keep", ["A", "B", ""]), ("fill", ["A", "B", "Item c."]), ("drop", ["A", "B"])],
)
def test_items_without_title(tmp_path, capsys, choice, titles):
    items = "item_id,title,text\na,A,Item a.\nb,B,Item b.\nc,,Item c.\n"
    assert prepare(tmp_path, items) == 3
    assert "items.csv row 3: column 'title' is empty" in capsys.readouterr().err
    assert prepare(tmp_path, items, more=("--missing_title", choice)) == 0
    assert Corpus.load(tmp_path / "out").item_titles() == titles


def test_requests_that_the_excluded_history_makes_unanswerable(tmp_path, capsys):
    events = EVENTS + "u,a,4\nv,a,1\nv,b,2\nv,c,3\n"
    assert prepare(tmp_path, events=events) == 0
    said = capsys.readouterr().err
    assert "test recommendation requests: 1 of 2 have their target in their own history" in said
    corpus = Corpus.load(tmp_path / "out")
    assert corpus.exclude_history
    requests = recommendation_requests(corpus, "test")
    assert [is_answerable(one, exclude_history=True) for one in requests] == [False, True]
    assert all(is_answerable(one, exclude_history=False) for one in requests)
    assert prepare(tmp_path, events=events, more=("--exclude_history", "false")) == 0
    assert not Corpus.load(tmp_path / "out").exclude_history
