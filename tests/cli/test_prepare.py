import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from sidrec.cli.preparing import prepare as command
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError, DataError, SidrecError
from tests.corpus.sources.test_movielens import write_csv

MOVIES = Path(os.environ.get("SIDREC_DATA", "../shared/data")) / "movies"
needs_data = pytest.mark.skipif(
    not MOVIES.is_dir(), reason=f"{MOVIES} is not here; name the data folder in SIDREC_DATA"
)


@pytest.fixture
def movies(tmp_path):
    return write_csv(tmp_path / "ml")


def prepare(*arguments):
    command.main([str(argument) for argument in arguments])


def query_file(folder, name, movie, **more):
    row = {"query_id": name, "query": f"about {name}", "movieIds": [movie], "group": name} | more
    (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return folder / f"{name}.jsonl"


def test_movielens_with_two_query_files(movies, tmp_path, capsys):
    one = query_file(tmp_path, "one", 10, split="train")
    two = query_file(tmp_path, "two", 999, split="test")
    out = tmp_path / "out"
    prepare("movielens", "--source", movies, "--queries", one, two, "--out", out)
    corpus = Corpus.load(out, verify=True)
    assert corpus.item_ids() == ["10", "20", "30"]
    assert [query["query_id"] for query in corpus.queries] == ["one"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "items: 3\n" in said.err
    assert "interactions: 3 (3 train, 0 valid, 0 test)\n" in said.err
    assert "queries of unknown items: 1, left out\n" in said.err


def test_settings_are_written_down_and_path_is_not(movies, tmp_path):
    arguments = ("--source", movies, "--min_item_interactions", 1, "--split", "temporal")
    prepare("movielens", *arguments, "--packaged_queries", "false", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "corpus.json").read_text()
    description = json.loads(text)
    assert description["settings"]["split"] == "temporal"
    assert description["counts"]["items"] == 2
    assert "GroupLens" in description["license"]
    assert str(tmp_path) not in text


def test_packaged_queries_find_their_films_by_title_and_year(movies, tmp_path):
    prepare("movielens", "--source", movies, "--out", tmp_path / "out")
    corpus = Corpus.load(tmp_path / "out")
    assert {query["source"] for query in corpus.queries} == {"queries_llm"}
    assert {tuple(query["item_index"]) for query in corpus.queries} == {(0,), (1,)}


def test_template_writes_queries(movies, tmp_path):
    arguments = ("--write_queries", "template", "--writer.num_queries", 2)
    prepare("movielens", "--source", movies, *arguments, "--out", tmp_path / "out")
    corpus = Corpus.load(tmp_path / "out")
    assert len(corpus.queries) > 0
    assert "queries_llm" not in {query["source"] for query in corpus.queries}


def test_table_and_its_refusal(tmp_path):
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["Glue", "Tape"]})
    interactions = pl.DataFrame({"user_id": ["1", "2"], "item_id": ["a", "c"], "timestamp": [1, 2]})
    items.write_csv(tmp_path / "items.csv")
    interactions.write_csv(tmp_path / "interactions.csv")
    arguments = ("table", "--items", tmp_path / "items.csv")
    arguments += ("--interactions", tmp_path / "interactions.csv", "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"interactions\.csv row 2: item_id 'c' is not in"):
        prepare(*arguments)
    assert not (tmp_path / "out").exists()
    prepare(*arguments, "--unknown_items", "drop")
    assert Corpus.load(tmp_path / "out").num_users == 1


def test_query_file_without_queries_is_said(tmp_path, capsys, movies):
    (tmp_path / "none.jsonl").touch()
    queries = ("--queries", tmp_path / "none.jsonl")
    prepare("movielens", "--source", movies, *queries, "--out", tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    assert sum("none.jsonl holds no queries" in line for line in said) == 1


@pytest.mark.parametrize("source", ["movielens", "synthetic"])
def test_folder_that_cannot_be_made_is_named(movies, source):
    what = ("--source", movies, "--packaged_queries", "false") if source == "movielens" else ()
    with pytest.raises(SidrecError, match=r"/proc/none/out cannot be written: No such file"):
        prepare(source, *what, "--out", "/proc/none/out")


def test_synthetic_leaves_no_scratch(tmp_path):
    prepare("synthetic", "--items", 50, "--users", 20, "--topics", 5, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Corpus.load(tmp_path / "out").num_items == 50
    with pytest.raises(ConfigError, match=r"10 topics need as many items, got 5; lower --topics"):
        prepare("synthetic", "--items", 5, "--topics", 10, "--out", tmp_path / "other")


def test_settings_come_from_a_config_file_too(tmp_path):
    (tmp_path / "prepare.yaml").write_text(f"out: {tmp_path / 'out'}\nitems: 40\nusers: 30\n")
    prepare("synthetic", "--config", tmp_path / "prepare.yaml", "--users", 20)
    corpus = Corpus.load(tmp_path / "out")
    assert (corpus.num_items, corpus.num_users) == (40, 20)


def test_wrong_usage_exits_with_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        prepare("movielens", "--source", "x")
    assert end.value.code == 2
    assert "out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic", "--out", "o", "--itms", "5"], r"--itms 5; did you mean 'items'\?"),
        (["synthetic", "--config", "c.yaml"], r"itms.*; did you mean 'items'\?"),
        (["table", "--items", "a"], r"required: table\.out"),
        (["movielenz"], r"movielenz"),
        (["synthetic", "--out", "o", "--split", "randm"], r"split.*leave_last_out"),
    ],
)
def test_misspelt_option_is_one_line_with_the_nearest(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("out: o\nitms: 5\n")
    with pytest.raises(SystemExit) as end:
        prepare(*arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)


def test_summary_is_a_table_on_a_terminal(monkeypatch, capsys, movies, tmp_path):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    prepare("movielens", "--source", movies, "--out", tmp_path / "out")
    assert "Corpus of movielens" in capsys.readouterr().err


def test_help_imports_neither_polars_nor_torch():
    code = (
        "import sys\nfrom sidrec.cli.preparing import prepare\n"
        "for arguments in (['--help'], ['table', '--help'], ['amazon', '--help']):\n"
        "    try:\n        prepare.main(arguments)\n    except SystemExit:\n        pass\n"
        "print({'polars', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--min_item_interactions" in done.stdout
    assert "--generation {2014,2018,2023}" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


@needs_data
def test_core_has_the_counts_of_its_readme(tmp_path):
    arguments = ("--source", MOVIES / "ml-latest-small", "--min_item_interactions", 20)
    prepare(
        "movielens", *arguments, "--queries", MOVIES / "queries_llm.jsonl", "--out", tmp_path / "o"
    )
    counts = Corpus.load(tmp_path / "o").description["counts"]
    assert (counts["items"], counts["interactions"], counts["users"]) == (1_297, 67_898, 610)
    assert (counts["queries"], counts["queries_test"]) == (10_376, 2_594)
    assert counts["interactions_test"] == 610
