import csv
import hashlib
import json
import os
from pathlib import Path

import pytest

from sidrec.corpus.queries.query_files import load_query_files, packaged_queries, read_packaged
from sidrec.corpus.sources.raw_catalogue import RawQuery
from sidrec.errors import DataError

MOVIES = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies"
needs_data = pytest.mark.skipif(
    not MOVIES.is_dir(), reason=f"{MOVIES} is not here; name the data folder in SIDREC_DATA"
)


def _write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = {
    "query_id": "q1",
    "query": "heist in  Paris",
    "movieIds": [7],
    "group": "g",
    "split": "test",
}


def test_grades_belong_to_items(tmp_path):
    row = {"query_id": "q", "query": "x", "item_ids": ["a", "b"], "grades": [3, 1]}
    (query,) = load_query_files([_write(tmp_path / "mine.jsonl", row)])
    assert (query.item_ids, query.grades, query.weights) == (("a", "b"), (3, 1), ())


def test_a_line_becomes_a_query(tmp_path):
    path = _write(
        tmp_path / "mine.jsonl", GOOD, "", {"query_id": 2, "text": "x", "item_ids": ["a"]}
    )
    assert load_query_files([path]) == [
        RawQuery("q1", "heist in Paris", ("7",), "g", "test", "mine", f"{path}, line 1"),
        RawQuery("2", "x", ("a",), "2", "", "mine", f"{path}, line 3"),
    ]


def test_files_follow_one_another(tmp_path):
    paths = [_write(tmp_path / f"{k}.jsonl", GOOD | {"query_id": k}) for k in "ba"]
    assert [query.source for query in load_query_files(paths)] == ["b", "a"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"query_id": "q2",', "not valid JSON"),
        ("[1]", "expected an object, found list"),
        (GOOD | {"query_id": "q2", "query": "  "}, "the query is empty"),
        (GOOD | {"query_id": "q2", "query": None}, "the query is empty"),
        (GOOD | {"query_id": "q2", "movieIds": []}, "without an answer"),
        (GOOD | {"query_id": "q2", "movieIds": 7}, "expected a list"),
        (GOOD | {"query_id": "q2", "movieIds": [1.5]}, "1.5 is not an id"),
        (GOOD | {"query_id": "q2", "movieIds": [True]}, "True is not an id"),
        (GOOD | {"query_id": "q2", "split": "dev"}, "split is 'dev'"),
        (GOOD | {"query_id": "q2", "splitt": "test"}, "key 'splitt' is not known"),
        (GOOD | {"query_id": "q2", "grades": [1, 2]}, r"grades is \[1, 2\], expected a whole"),
        (GOOD | {"query_id": "q2", "grades": [0]}, "leave items of grade 0 out"),
        (GOOD | {"query_id": "q2", "text": "two"}, "needs query or text"),
        ({"query_id": "q2", "movieIds": [7]}, "needs query or text, found query_id, movieIds"),
        ({"query": "x", "movieIds": [7]}, "needs query_id"),
        (GOOD, "query_id 'q1' was used before in .*line 1"),
        (GOOD | {"query_id": "q2", "split": "train"}, "group 'g' is 'train' here but 'test'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    path = _write(tmp_path / "mine.jsonl", GOOD, "", row)
    with pytest.raises(DataError, match=message) as caught:
        load_query_files([path])
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_query_files([tmp_path / "none.jsonl"])
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes\.jsonl is not UTF-8"):
        load_query_files([tmp_path / "bytes.jsonl"])


def test_the_packaged_queries_find_their_film_in_any_spelling(capsys):
    items = [("m", "The Matrix", 1999), ("t", "Toy Story (1995)", None), ("k", "King Kong", 1976)]
    queries = packaged_queries(items)
    assert {query.item_ids for query in queries} == {("m",), ("t",)}
    assert len(queries) == 16
    assert queries[0] == RawQuery(
        "llm-1-0-o",
        "first fully computer animated feature film",
        ("t",),
        "llm-1-0",
        "train",
        "queries_llm",
    )
    assert "2 of 1,297 films" in capsys.readouterr().err


def test_no_packaged_group_lies_in_two_splits():
    packaged = read_packaged()
    groups = {(query.group, query.split) for query in packaged}
    assert len(packaged) == 10_376
    assert len({group for group, _ in groups}) == len(groups) == 5_188


@needs_data
def test_the_package_equals_the_file_it_was_made_from():
    with (MOVIES / "ml-latest-small" / "movies.csv").open(newline="") as stream:
        items = [(row["movieId"], row["title"], None) for row in csv.DictReader(stream)]
    from_file = load_query_files([MOVIES / "queries_llm.jsonl"])
    assert packaged_queries(items) == [query._replace(place="") for query in from_file]


@needs_data
def test_packing_again_gives_the_same_queries(tmp_path):
    import lzma
    import subprocess
    import sys

    root = Path(__file__).parents[3]
    command = [sys.executable, root / "scripts" / "pack_queries.py", "--out", tmp_path / "q.xz"]
    command += ["--queries", MOVIES / "queries_llm.jsonl"]
    command += ["--movies", MOVIES / "ml-latest-small" / "movies.csv"]
    subprocess.run(command, check=True, capture_output=True)
    shipped = root / "sidrec" / "corpus" / "resources" / "queries_llm.jsonl.xz"
    digests = [
        hashlib.sha256(lzma.decompress(path.read_bytes())).hexdigest()
        for path in (tmp_path / "q.xz", shipped)
    ]
    assert digests[0] == digests[1]


@needs_data
def test_real_requests_load():
    queries = load_query_files([MOVIES / "queries_opendialkg.jsonl"])
    assert len(queries) == 1_758


@pytest.mark.parametrize("key", ["query_id", "query"])
def test_half_a_character_is_refused(tmp_path, key):
    row = {"query_id": "q", "query": "glue", "item_ids": ["a"]}
    whole, half = row | {key: "x\U0001f600"}, row | {key: "x\ud800"}
    (tmp_path / "q.jsonl").write_text(json.dumps(whole) + "\n")
    assert len(load_query_files([tmp_path / "q.jsonl"])) == 1
    (tmp_path / "q.jsonl").write_text("\n" + json.dumps(half) + "\n")
    with pytest.raises(
        DataError, match=r"q\.jsonl, line 2: has an unpaired surrogate \('\\ud800'\)"
    ):
        load_query_files([tmp_path / "q.jsonl"])
