"""Dense retrieval and baselines as runs: exact, without the own history, one protocol."""

import sys

import numpy as np
import pytest
import torch

from sidrec.cli.baselines import main
from sidrec.comparison.baselines.run_baseline import run_baseline
from sidrec.comparison.baselines.trained import dense_baseline, nearest, nearest_by_torch, retrieve
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.encoder.dense_retrieval import dense_recall, mean_history
from sidrec.errors import ConfigError, RunError
from sidrec.figures import evaluate
from sidrec.files import read_json
from sidrec.generator.training.predictions import predictions_of_ranked, read_predictions
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.types import Request


def test_faiss_and_torch_agree():
    pytest.importorskip("faiss")
    drawn = np.random.default_rng(0)
    questions, items = drawn.random((5, 6), np.float32), drawn.random((40, 6), np.float32)
    one, other = nearest(questions, items, k=7), nearest_by_torch(questions, items, k=7)
    assert one.items.tolist() == other.items.tolist()
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_torch_serves_where_faiss_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = nearest(np.ones((1, 2), np.float32), np.diag([1, 3]).astype(np.float32), k=1)
    assert found.items.tolist() == [[1]]


def test_retrieval_by_hand():
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    requests = [
        Request("a", "search", "q", (), ()),
        Request("b", "recommendation", "", (2, 2), ()),
    ]
    questions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    counts = torch.tensor([1, 0, 2, 5])
    ranked = retrieve(questions, items, requests, counts, top_k=4)
    assert ranked.items.tolist() == [[3, 2, 0, 1], [1, 3, 0, -1]]  # equal scores by popularity
    assert ranked.scores[1].tolist() == [1.0, 0.0, 0.0, float("-inf")]


def test_dense_baseline_is_the_encoders_own_dense_recall(tiny):
    corpus = Corpus.load(tiny.corpus)
    items = SemanticIdBundle.load(tiny.encoder_run / "semantic_ids").embeddings.vectors
    requests = recommendation_requests(corpus, "test")
    ranked = dense_baseline(corpus, requests, run=tiny.encoder_run, top_k=30)
    counts = torch.zeros(corpus.num_items, dtype=torch.long)
    figures = evaluate(predictions_of_ranked(requests, ranked, split="test"), counts)
    users = mean_history(items, [one.history for one in requests], most_recent=5)
    expected = dense_recall(users, items, requests, ks=(10, 30))
    assert figures["recommendation/recall@10"] == pytest.approx(expected[10])
    assert figures["recommendation/recall@30"] == pytest.approx(expected[30])


def test_a_baseline_is_a_run_like_others(tiny, tmp_path, capsys):
    where = ("--corpus", str(tiny.corpus), "--run_dir", str(tmp_path))
    main(["--system", "dense", "--from", str(tiny.encoder_run), *where])
    assert "written:" in capsys.readouterr().out
    corpus = Corpus.load(tiny.corpus)
    asked = len(search_requests(corpus, "test")) + len(recommendation_requests(corpus, "test"))
    assert len(read_predictions(tmp_path / "predictions.parquet")) == asked
    assert read_json(tmp_path / "manifest.json")["corpus_fingerprint"] == corpus.fingerprint
    assert read_json(tmp_path / "metrics.json")["search/num_requests"] > 0


@pytest.mark.parametrize(
    ("system", "tasks"), [("bm25", {"search"}), ("neighbors", {"recommendation"})]
)
def test_a_baseline_answers_its_own_task(corpus, tmp_path, system, tasks):
    run_baseline(system, corpus.folder, run=None, out=tmp_path)
    assert {one.task for one in read_predictions(tmp_path / "predictions.parquet")} == tasks


def test_enmf_needs_a_run_of_enmf(tiny, tmp_path):
    with pytest.raises(RunError, match="is not an ENMF"):
        run_baseline("enmf", tiny.corpus, run=tiny.encoder_run, out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--system", "bm26", "--corpus", "c", "--run_dir", "r"],
            "baselines 'bm26' is unknown, expected one of",
        ),
        (
            ["--system", "dense", "--corpus", "c", "--run_dir", "r"],
            "'dense' needs a run of an encoder: give --from",
        ),
        (["--system", "bm25"], "needs --corpus DIR and --run_dir DIR"),
        ([], "needs --from RUN, or --system NAME"),
    ],
)
def test_wrong_usage(arguments, message):
    with pytest.raises(ConfigError, match=message):
        main(arguments)
