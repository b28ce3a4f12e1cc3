"""Cold-start figures from raw files to the last command, equal to a count by hand."""

import json

import polars as pl
import pytest

from sidrec.corpus.store import Corpus
from sidrec.runs.directory import RunDirectory
from tests.pairs.made import make_encoder
from tests.tiny import encoder_settings, generator_settings, sidrec, write_yaml

pytestmark = pytest.mark.slow


def count_by_hand(run, cold, task, k):
    """Return recall@k over the cold answers and the number of requests that have one."""
    recalls = []
    for row in pl.read_parquet(run.predictions).filter(task=task).iter_rows(named=True):
        wanted = set(row["relevant"]) & cold
        if wanted:
            recalls.append(len(wanted & set(row["items"][:k])) / len(wanted))
    return sum(recalls) / len(recalls), len(recalls)


def cold_items(folder):
    """Return the items of valid and test that train does not name, from the files alone."""
    named = {"train": set(), "later": set()}
    for row in pl.read_parquet(folder / "interactions.parquet").iter_rows(named=True):
        named["train" if row["split"] == "train" else "later"].add(row["item_index"])
    for row in pl.read_parquet(folder / "queries.parquet").iter_rows(named=True):
        named["train" if row["split"] == "train" else "later"] |= set(row["item_index"])
    return named["later"] - named["train"]


def test_from_raw_files_to_cold_start_figures(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    sizes = ("--items", 60, "--users", 40, "--interactions", 800, "--topics", 6, "--seed", 3)
    words = ("prepare", "synthetic", *sizes, "--cold_item_fraction", 0.1, "--out", corpus)
    assert sidrec(*words) == 0
    told = capsys.readouterr().err
    assert "items held out of train and valid: 6, with" in told
    cold = cold_items(corpus)
    counts = json.loads((corpus / "corpus.json").read_text())["counts"]
    assert counts["items_held_out"] == 6

    encoder = make_encoder(tmp_path / "encoder", Corpus.load(corpus), dropout=0.0)
    config = write_yaml(tmp_path / "encoder.yaml", encoder_settings(corpus, encoder))
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "enc") == 0
    settings = generator_settings()
    settings["model"]["init_args"]["search"] = {"num_beams": 60, "top_k": 30}
    config = write_yaml(tmp_path / "generator.yaml", settings)
    fit = ("fit", "--config", config, "--from", tmp_path / "enc", "--run_dir", tmp_path / "gen")
    assert sidrec(*fit) == 0
    baseline = ("baselines", "--corpus", corpus, "--run_dir")
    for run, words, tasks in (
        ("gen", ("test", "--from", tmp_path / "gen"), ("search", "recommendation")),
        ("bm25", (*baseline, tmp_path / "bm25", "--system", "bm25"), ("search",)),
        ("near", (*baseline, tmp_path / "near", "--system", "neighbors"), ("recommendation",)),
    ):
        capsys.readouterr()
        assert sidrec(*words) == 0
        directory = RunDirectory(tmp_path / run)
        figures = json.loads(directory.metrics.read_text())
        (line,) = (
            one for one in capsys.readouterr().out.splitlines() if one.startswith("cold start:")
        )
        for task in tasks:
            for k, key in ((5, "recall@5_cold_start"), (10, "recall@10_cold_start")):
                recall, _ = count_by_hand(directory, cold, task, k)
                assert figures[f"{task}/{key}"] == pytest.approx(recall)
            recall, number = count_by_hand(directory, cold, task, 30)
            assert figures[f"{task}/cold_start"] == pytest.approx(recall)
            assert figures[f"{task}/num_requests_cold_start"] == number
            assert f"recall@30 {recall:.4f} over {number} requests" in line
    found = pl.read_parquet(RunDirectory(tmp_path / "gen").predictions)
    asked = {item for row in found["relevant"].to_list() for item in row} & cold
    assert counts["cold_start_items"] == len(asked)
    assert f"items that only test asks for: {len(asked)}, in" in told
    for task in ("search", "recommendation"):
        number = count_by_hand(RunDirectory(tmp_path / "gen"), cold, task, 30)[1]
        assert counts[f"cold_start_requests_{task}"] == number
    assert json.loads(RunDirectory(tmp_path / "bm25").metrics.read_text())["search/cold_start"] > 0

    dense = ("baselines", "--from", tmp_path / "enc", "--corpus", corpus, "--system", "dense")
    assert sidrec(*dense, "--run_dir", tmp_path / "dense") == 0
    assert sidrec("test", "--from", tmp_path / "enc") == 0
    assert "cold start: search recall@10 " in capsys.readouterr().out
    own, other = (
        json.loads(RunDirectory(tmp_path / run).metrics.read_text()) for run in ("enc", "dense")
    )
    names = [
        f"{task}/{key}"
        for task in ("search", "recommendation")
        for key in ("recall@10_cold_start", "cold_start", "num_requests_cold_start")
    ]
    for name in names:
        assert own[name] == pytest.approx(other[name]), name
