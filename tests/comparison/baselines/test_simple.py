"""Baselines by hand: train is u0: a b, u1: a b, u2: b c; so a 2, b 3, c 1, d and e 0 users."""

import pytest
import torch

from sidrec.comparison.baselines import simple as baselines
from sidrec.comparison.baselines.run_baseline import run_baseline
from sidrec.comparison.baselines.simple import (
    bm25_baseline,
    item_neighbors_baseline,
    popularity_baseline,
)
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.generator.training.predictions import read_predictions
from sidrec.types import Request
from tests.comparison.conftest import TIMELINES, build_tiny

A, B, C, D, E = range(5)


def test_popularity_counts_train_only(corpus):
    ranked = popularity_baseline(corpus, search_requests(corpus, "test"), top_k=30)
    assert ranked.items.tolist() == [[B, A, C, D, E]] * 2
    assert ranked.scores[0].tolist() == [3, 2, 1, 0, 0]


def test_history_is_left_out(corpus):
    requests = recommendation_requests(corpus, "test")
    assert requests[0].history == (A, B, C)
    ranked = popularity_baseline(corpus, requests[:1], top_k=4)
    assert ranked.items.tolist() == [[D, E, -1, -1]]
    assert ranked.scores[0, 2:].tolist() == [float("-inf")] * 2


def test_bm25_finds_the_words_and_fills_up_by_popularity(corpus):
    ranked = bm25_baseline(corpus, search_requests(corpus, "test"), top_k=4)
    assert ranked.items.tolist() == [[E, A, B, C], [D, B, A, C]]
    assert ranked.scores[0, 0] > ranked.scores[0, 1] > ranked.scores[0, 2] == 0


def test_bm25_of_unknown_or_empty_words_is_popularity(corpus):
    requests = [Request("x", "search", text, (), ()) for text in ("zebra", "", "the")]
    ranked = bm25_baseline(corpus, requests, top_k=5)
    assert ranked.items.tolist() == [[B, A, C, D, E]] * 3


def test_neighbors_by_hand(corpus):
    requests = [Request("x", "recommendation", "", (A,), ()), Request("y", *_asks((C, B)))]
    ranked = item_neighbors_baseline(corpus, requests, top_k=3, num_history=2)
    assert ranked.items.tolist() == [[B, C, D], [A, D, E]]
    cosine = 2 / (2 * 3) ** 0.5  # a and b meet in two users, of two and three
    torch.testing.assert_close(ranked.scores[:, 0], torch.tensor([cosine, cosine]))


def test_neighbors_look_at_the_end_of_the_history(corpus):
    requests = [Request("x", *_asks((B, D)))]
    long = item_neighbors_baseline(corpus, requests, top_k=1, num_history=2)
    short = item_neighbors_baseline(corpus, requests, top_k=1, num_history=1)
    assert long.scores[0, 0] > 0.5
    assert short.scores.tolist() == [[0.0]]  # nobody consumed d in train
    assert short.items.tolist() == [[A]]


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_chunks_change_nothing(corpus, monkeypatch, at_once):
    monkeypatch.setattr(baselines, "_SCORES_AT_ONCE", at_once)
    requests = recommendation_requests(corpus, "valid")
    ranked = item_neighbors_baseline(corpus, requests, top_k=3, num_history=10)
    assert ranked.items.tolist() == [[C, D, E], [C, D, E], [A, D, E]]


def _asks(history):
    return "recommendation", "", history, ()


@pytest.mark.parametrize("excluded", [True, False])
@pytest.mark.parametrize("system", ["popularity", "neighbors", "ease", "ease_recency", "next_item"])
def test_own_items_are_candidates_where_the_corpus_says_so(tmp_path, system, excluded):
    """u0 ends with an item of its history: a hit, or a request that cannot be answered."""
    corpus = build_tiny(tmp_path / "corpus", TIMELINES | {"u0": "abcda"}, exclude_history=excluded)
    run_baseline(system, corpus.folder, run=None, out=tmp_path / "run")
    found = read_predictions(tmp_path / "run" / "predictions.parquet")
    by_user = {one.request_id: one for one in found if one.task == "recommendation"}
    first = by_user[recommendation_requests(corpus, "test")[0].request_id]
    assert first.relevant == (A,)
    assert first.answerable != excluded
    assert (A in first.items) != excluded
