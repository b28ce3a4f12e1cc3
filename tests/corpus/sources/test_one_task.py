"""Corpora of one task alone, from the publisher's files to the figures of the test split."""

import json

import pytest

from sidrec.corpus.store import Corpus
from tests.pairs.made import make_encoder
from tests.tiny import encoder_settings, generator_settings, sidrec, write_yaml

NUM_ITEMS = 40


def beir_folder(folder):
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{n}", "title": f"thing {n}", "text": f"made of {n % 7}"}
        for n in range(NUM_ITEMS)
    ]
    queries = [{"_id": f"q{n}", "text": f"what is made {n} of"} for n in range(60)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, some in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 60))):
        rows = [f"q{n}\td{n % NUM_ITEMS}\t1" for n in some]
        (folder / "qrels" / f"{name}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *rows, ""])
        )
    return folder


def recbole_folder(folder):
    folder.mkdir()
    rows = [
        f"u{user}\ti{(user * 3 + step) % NUM_ITEMS}\t{step}"
        for user in range(20)
        for step in range(8)
    ]
    (folder / "set.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, ""])
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "make", "trained", "other", "missing"),
    [
        ("beir", beir_folder, "search", "recommendation", "interaction"),
        ("recbole", recbole_folder, "recommendation", "search", "query"),
    ],
)
def test_one_task_trains_both_stages(tmp_path, capsys, command, make, trained, other, missing):
    source, corpus = make(tmp_path / "in"), tmp_path / "corpus"
    assert sidrec("prepare", command, "--source", source, "--out", corpus) == 0
    encoder = make_encoder(tmp_path / "encoder", Corpus.load(corpus), dropout=0.0)
    settings = encoder_settings(corpus, encoder)
    config = write_yaml(tmp_path / "encoder.yaml", settings)
    capsys.readouterr()
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "refused") == 3
    assert f"has no train {missing}" in capsys.readouterr().err
    pairs = {"search": "query_item_share", "recommendation": "item_item_share"}
    settings["data"]["init_args"][pairs[other]] = 0.0
    config = write_yaml(tmp_path / "encoder.yaml", settings)
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "encoder-run") == 0
    settings = generator_settings()
    settings["data"]["init_args"][f"{other}_share"] = 0.0
    config = write_yaml(tmp_path / "generator.yaml", settings)
    fit = ("fit", "--config", config, "--from", tmp_path / "encoder-run")
    assert sidrec(*fit, "--run_dir", tmp_path / "generator-run") == 0
    assert sidrec("test", "--from", tmp_path / "generator-run") == 0
    metrics = json.loads((tmp_path / "generator-run" / "metrics.json").read_text())
    assert 0 <= metrics[f"{trained}/recall@10"] <= 1
    assert f"{other}/recall@10" not in metrics


@pytest.mark.parametrize("task", ["search", "recommendation"])
def test_a_table_of_one_task_needs_no_empty_file(tmp_path, task):
    (tmp_path / "items.csv").write_text("item_id,title\na,Red thing\nb,Blue thing\n")
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\n")
    query = {"query_id": "q", "query": "something red", "item_ids": ["a"], "split": "train"}
    (tmp_path / "queries.jsonl").write_text(json.dumps(query) + "\n")
    given = {
        "search": ["--queries", "queries.jsonl"],
        "recommendation": ["--interactions", "events.csv"],
    }
    flag, file = given[task]
    table = ("prepare", "table", "--items", tmp_path / "items.csv", "--out", tmp_path / "corpus")
    assert sidrec(*table, flag, tmp_path / file) == 0
    counts = Corpus.load(tmp_path / "corpus").description["counts"]
    assert (counts["queries"], counts["interactions"]) == ((1, 0) if task == "search" else (0, 2))


def test_items_alone_are_one_line(tmp_path, capsys):
    (tmp_path / "items.csv").write_text("item_id,title\na,Red thing\n")
    table = ("prepare", "table", "--items", tmp_path / "items.csv", "--out", tmp_path / "corpus")
    assert sidrec(*table) == 2
    assert "needs --interactions, --queries or --write_queries" in capsys.readouterr().err
