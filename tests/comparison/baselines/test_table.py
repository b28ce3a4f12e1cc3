"""The table names every system and every place, on paper and on a terminal."""

import io
import sys

import pytest
import yaml

from sidrec.cli.baselines import main
from sidrec.comparison.baselines.table import (
    Row,
    baseline_rows,
    compare_with_baselines,
    write_table,
)
from sidrec.corpus.store import Corpus
from sidrec.errors import RunError
from sidrec.files import write_json


@pytest.fixture
def run(tmp_path, corpus):
    write_json(tmp_path / "metrics.json", {"search/recall@30": 0.25, "recommendation/recall@30": 1})
    config = {
        "data": {"init_args": {"corpus": str(corpus.folder)}},
        "model": {"init_args": {"encoder_run": "runs/enc", "semantic_ids": "runs/enc/ids"}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_rows_of_the_tiny_corpus(corpus):
    assert baseline_rows(corpus) == [
        Row("popularity", 1.0, 1.0),  # five items fit in any list
        Row("BM25", 1.0, None),
        Row("item-item neighbors", None, 1.0),
        Row("next-item regression", None, 1.0),
    ]


def test_an_encoder_run_adds_dense_and_hybrid_retrieval(tiny):
    rows = baseline_rows(Corpus.load(tiny.corpus), tiny.encoder_run)
    assert [row.system for row in rows[-2:]] == ["dense retrieval", "hybrid (dense + BM25)"]
    assert rows[-2].search is not None
    assert rows[-2].recommendation is not None
    assert rows[-1].search is not None
    assert rows[-1].recommendation is None


def test_plain_text_says_figures_and_places(run, capsys):
    main(["--from", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Recall@30", "search", "recommendation"]
    assert lines[1].split() == ["sidrec", "0.250", "1.000"]
    assert lines[3].split() == ["BM25", "1.000", "-"]
    assert f"ranked lists   {run}/predictions.parquet" in lines
    assert "encoder run    runs/enc" in lines


def test_terminal_gets_a_drawn_table(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    write_table([Row("sidrec", 0.5, None)])
    assert "┃" in stream.getvalue()
    assert "0.500" in stream.getvalue()


def test_unfinished_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"not a finished run \(no manifest"):
        compare_with_baselines(tmp_path)


def test_run_without_figures_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"state": "finished"})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(RunError, match=r"metrics\.json does not exist; run `sidrec test --from"):
        compare_with_baselines(tmp_path)


def test_run_without_corpus_is_refused(run):
    (run / "config.yaml").write_text("data: {}\n")
    with pytest.raises(RunError, match=r"names no data\.corpus"):
        compare_with_baselines(run)
