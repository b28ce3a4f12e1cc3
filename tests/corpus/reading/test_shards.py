from importlib.util import find_spec

import fsspec
import polars as pl
import pytest

from sidrec.corpus.reading.shards import local_shards
from sidrec.corpus.store import Corpus
from tests.cli.test_bad_input import INTERACTIONS, ITEMS
from tests.tiny import sidrec

HEADER, *ROWS = INTERACTIONS.splitlines(keepends=True)


@pytest.fixture
def store():
    """Return a store in memory, with the interactions in three shards."""
    system = fsspec.filesystem("memory")
    for number, row in enumerate(ROWS):
        system.pipe_file(f"/logs/part-{number}.csv", (HEADER + row).encode())
    system.pipe_file("/items.csv", ITEMS.encode())
    yield system
    for file in system.find("/"):
        system.rm_file(file)


def prepare(items, interactions, out):
    return sidrec(
        "prepare", "table", "--items", items, "--interactions", interactions, "--out", out
    )


def test_shards_here_and_elsewhere_make_the_corpus_of_one_file(tmp_path, store, capsys):
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "all.csv").write_text(INTERACTIONS)
    (tmp_path / "logs").mkdir()
    for number, row in enumerate(ROWS):
        (tmp_path / "logs" / f"part-{number}.csv").write_text(HEADER + row)
    made = []
    for number, (items, interactions) in enumerate(
        [
            (tmp_path / "items.csv", tmp_path / "all.csv"),
            (tmp_path / "items.csv", tmp_path / "logs" / "*.csv"),
            (f"file://{tmp_path}/items.csv", f"file://{tmp_path}/logs/part-?.csv"),
            ("memory://items.csv", "memory://logs/*.csv"),
        ]
    ):
        assert prepare(items, interactions, tmp_path / f"corpus-{number}") == 0
        made.append(Corpus.load(tmp_path / f"corpus-{number}").fingerprint)
    assert len(set(made)) == 1
    assert "fetching /logs/part-0.csv" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))  # what was fetched is gone


def test_parquet_shards_are_one_table(tmp_path):
    for number in range(3):
        pl.DataFrame({"number": [number]}).write_parquet(tmp_path / f"{2 - number}.parquet")
    with local_shards(str(tmp_path / "*.parquet"), near=tmp_path / "out") as shards:
        assert pl.scan_parquet(shards.files).collect()["number"].to_list() == [2, 1, 0]


@pytest.mark.parametrize(
    ("interactions", "code", "text"),
    [
        ("s3://bucket/*.csv", 2, "s3:// needs a package that is not installed (Install s3fs"),
        ("nowhere://bucket/*.csv", 2, "fsspec knows no scheme 'nowhere'"),
        ("memory://logs/*.jsonl", 3, "memory://logs/*.jsonl names no file"),
        ("memory://logs/nobody.csv", 3, "memory://logs/nobody.csv names no file"),
        ("no/*.csv", 3, "no/*.csv names no file"),
        (".", 3, ". is a folder; name its files, e.g. *.parquet"),
        ("memory://logs/*", 3, "has files of several kinds ['.csv', '.txt']"),
        ("memory://odd/*.csv", 3, "files of one table have the same columns"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, store, capsys, interactions, code, text):
    (tmp_path / "items.csv").write_text(ITEMS)
    store.pipe_file("/logs/readme.txt", b"")
    store.pipe_file("/odd/a.csv", INTERACTIONS.encode())
    store.pipe_file("/odd/b.csv", INTERACTIONS.replace("rating", "stars").encode())
    if interactions.startswith("s3") and find_spec("s3fs"):
        pytest.skip("NOT TESTED: s3fs is installed")
    capsys.readouterr()
    assert prepare(tmp_path / "items.csv", interactions, tmp_path / "corpus") == code
    *fetched, line = capsys.readouterr().err.splitlines()
    assert text in line
    assert all(one.startswith("fetching") for one in fetched)
    assert [file.name for file in tmp_path.iterdir()] == ["items.csv"]


def test_a_store_that_fails_is_named(tmp_path, store, monkeypatch, capsys):
    def broken(*_, **__):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(type(store), "get_file", broken)
    (tmp_path / "items.csv").write_text(ITEMS)
    assert prepare(tmp_path / "items.csv", "memory://logs/*.csv", tmp_path / "corpus") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "memory://logs/*.csv cannot be read (PermissionError: 403 Forbidden)" in line
    assert [file.name for file in tmp_path.iterdir()] == ["items.csv"]
