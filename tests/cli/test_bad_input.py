"""Bad input at the command line: one line with file and row, the right exit code, nothing left."""

import json
import shutil

import polars as pl
import pytest

from sidrec.runs.directory import RunDirectory
from tests.tiny import sidrec, write_yaml

ITEMS = "item_id,title,text\na,Glue,Strong glue.\nb,Tape,Sticky tape.\nc,Nail,Iron nail.\n"
INTERACTIONS = "user_id,item_id,timestamp,rating\n1,a,10,4\n1,b,20,5\n1,c,30,3\n"
QUERIES = "query_id,query,item_ids\nq1,sticks,a|b\nq2,iron,c\n"


def prepare(folder, *, items=ITEMS, interactions=INTERACTIONS, queries=QUERIES):
    """Write the tables and run ``sidrec prepare table`` on them; return its exit code."""
    arguments = []
    for name, text in (("items", items), ("interactions", interactions), ("queries", queries)):
        (folder / f"{name}.csv").write_text(text)
        arguments += [f"--{name}", folder / f"{name}.csv"]
    return sidrec("prepare", "table", *arguments, "--out", folder / "corpus")


def the_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"items": ITEMS.replace("title", "name")}, "items.csv has no column 'title'; it has ["),
        ({"items": ITEMS.replace("item_id", "itemid")}, "did you mean 'itemid'? Rename it."),
        ({"interactions": INTERACTIONS.replace("user_id", "userid")}, "did you mean 'userid'?"),
        ({"queries": QUERIES.replace("item_ids", "item_id")}, "queries.csv has no column 'item_"),
        ({"items": ITEMS + "a,Again,Twice.\n"}, "items.csv row 4: item_id 'a' was already used"),
        ({"queries": QUERIES + "q1,again,a\n"}, "queries.csv row 3: query 'q1' has a query_id"),
        ({"interactions": INTERACTIONS + "1,z,4,1\n"}, "interactions.csv row 4: item_id 'z' is"),
        ({"queries": QUERIES + "q3,what,z\n"}, "row 3: query 'q3' names item_id 'z', which is"),
        ({"items": ITEMS + "d,Saw, \n"}, "items.csv row 4: column 'text' is empty"),
        ({"queries": QUERIES + "q3, ,a\n"}, "queries.csv row 3: query 'q3' has an empty text"),
        ({"interactions": INTERACTIONS + "2,a,1,nan\n"}, "row 4: column 'rating' is NaN"),
        ({"interactions": INTERACTIONS + "2,a,soon,1\n"}, "row 4: column 'timestamp' is empty"),
        ({"interactions": INTERACTIONS + ",a,1,1\n"}, "row 4: column 'user_id' is empty"),
        ({"queries": QUERIES + "q3,what,\n"}, "queries.csv row 3: query 'q3' names no item"),
        ({"items": "item_id,title,text\n"}, "items.csv has no items; a corpus needs at least"),
        ({"items": ""}, "items.csv cannot be read"),
        ({"items": ITEMS.replace("title", "text")}, "items.csv has two columns 'text'"),
    ],
)
def test_a_bad_table_is_one_line_with_file_and_row(tmp_path, capsys, change, text):
    assert prepare(tmp_path, **change) == 3
    assert text in the_line(capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "interactions.csv",
        "items.csv",
        "queries.csv",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--columns.weight", "wieght"), 3, "interactions.csv has no column 'wieght'; it has ["),
        (("--columns.rating", "stars"), 3, "interactions.csv has no column 'stars'; it has ["),
        (("--writer.num_queries", "0"), 2, "writer.num_queries must be 1 or more, got 0."),
    ],
)
def test_a_flag_that_cannot_be_obeyed_is_refused(tmp_path, capsys, flags, code, text):
    assert prepare(tmp_path) == 0
    capsys.readouterr()
    files = [word for n in ("items", "interactions") for word in (f"--{n}", tmp_path / f"{n}.csv")]
    words = ("--write_queries", "template", "--out", tmp_path / "again")
    assert sidrec("prepare", "table", *files, *words, *flags) == code
    assert text in the_line(capsys)
    assert not (tmp_path / "again").exists()


def test_a_corpus_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    sizes = ("--items", 10, "--topics", 2, "--users", 5, "--interactions", 30)
    assert sidrec("prepare", "synthetic", *sizes, "--out", tmp_path / "file" / "corpus") == 1
    assert "corpus cannot be written: " in the_line(capsys)
    assert sidrec("prepare", "synthetic", "--queries_per_item", -1, "--out", tmp_path / "c") == 2
    assert "queries_per_item must be 0 or more, got -1." in the_line(capsys)


def test_timestamps_out_of_order_are_sorted_and_counted(tmp_path, capsys):
    assert prepare(tmp_path, interactions=INTERACTIONS + "1,a,5,4\n1,b,25,4\n") == 0
    assert "timestamps out of order: 1, sorted" in capsys.readouterr().err
    rows = pl.read_parquet(tmp_path / "corpus" / "interactions.parquet")
    assert rows["timestamp"].to_list() == [1_000_000 * second for second in (5, 10, 20, 25, 30)]


@pytest.mark.parametrize("name", ["items", "interactions", "queries"])
def test_a_truncated_parquet_file_is_named(tmp_path, capsys, name):
    assert prepare(tmp_path) == 0
    file = tmp_path / "corpus" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    capsys.readouterr()
    places = ("--items", file, "--interactions", tmp_path / "interactions.csv")
    assert sidrec("prepare", "table", *places, "--out", tmp_path / "again") == 3
    assert f"{name}.parquet cannot be read" in the_line(capsys)


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
@pytest.mark.parametrize("command", ["test", "fit", "ids", "retrieve"])
def test_a_run_that_has_not_finished_is_no_source(tmp_path, capsys, command, state):
    run = RunDirectory(tmp_path / "run")
    run.write_manifest(state=state, stage="encoder")
    words = {
        "fit": ["--run_dir", tmp_path / "gen"],
        "ids": ["--config", "configs/ids/tiger.yaml", "--out", tmp_path / "ids"],
        "retrieve": ["--input", "/dev/null", "--output", tmp_path / "o.jsonl"],
    }
    assert sidrec(command, "--from", run.root, *words.get(command, [])) == 1
    assert f"run is not a finished run (state '{state}')" in the_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_catalogue_smaller_than_the_codebook_names_both_numbers(tiny, tmp_path, capsys):
    words = ("--config", "configs/ids/tiger.yaml", "--out", tmp_path / "ids")
    assert sidrec("ids", "--from", tiny.encoder_run, *words) == 2
    assert "60 items, fewer than the 256 codes" in the_line(capsys)
    assert not (tmp_path / "ids").exists()


def test_a_bundle_of_another_corpus_is_refused_by_test_too(tiny, tmp_path, capsys):
    shutil.copytree(tiny.generator_run, tmp_path / "run")
    assert prepare(tmp_path) == 0
    capsys.readouterr()
    code = sidrec("test", "--from", tmp_path / "run", "--data.corpus", tmp_path / "corpus")
    assert code == 3
    assert "holds Semantic IDs of another corpus" in capsys.readouterr().err.splitlines()[-1]


def test_a_malformed_request_is_answered_by_its_error(tiny, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "task": \n{"id": "b", "task": "rank"}\n')
    places = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert sidrec("retrieve", "--from", tiny.generator_run, *places) == 0
    one, other = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert one == {"id": None, "error": one["error"]}
    assert "not valid JSON" in one["error"]
    assert other == {"id": "b", "error": other["error"]}
    capsys.readouterr()


def test_a_baseline_does_not_replace_the_figures_of_another_run(tmp_path, capsys):
    run = RunDirectory(tmp_path / "gen")
    run.write_manifest(state="finished", stage="generator")
    words = ("baselines", "--system", "bm25", "--corpus", tmp_path, "--run_dir", run.root)
    assert sidrec(*words) == 2
    assert "gen is a run of stage 'generator', whose figures would be replaced" in the_line(capsys)
    assert [file.name for file in run.root.iterdir()] == ["manifest.json"]


def test_a_table_of_baselines_takes_no_run_dir(tmp_path, capsys):
    run = RunDirectory(tmp_path / "gen")
    run.write_manifest(state="finished", stage="generator")
    assert sidrec("baselines", "--from", run.root, "--run_dir", tmp_path / "out") == 2
    assert "--run_dir is what --system NAME writes; give both, or neither." in the_line(capsys)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--dry_run", "--report_only"), "--dry_run and --report_only contradict each other"),
        (("--report_only", "--only", "a"), "--report_only and --only contradict each other"),
    ],
)
def test_two_modes_of_a_comparison_contradict_each_other(tmp_path, capsys, flags, text):
    (tmp_path / "corpus.json").touch()
    config = write_yaml(tmp_path / "c.yaml", {"corpus": str(tmp_path)})
    assert sidrec("compare", "--config", config, *flags) == 2
    assert text in the_line(capsys)


def test_only_a_generator_predicts(tiny, capsys):
    assert sidrec("predict", "--from", tiny.encoder_run) == 2
    assert "was made by stage 'encoder'; `sidrec predict` writes the ranked" in the_line(capsys)
