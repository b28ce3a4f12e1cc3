"""Linear baselines; train is u0: a b, u1: a b, u2: b c."""

import numpy as np
import pytest
import torch

from sidrec.comparison.baselines import linear
from sidrec.comparison.baselines.hybrid import hybrid_baseline
from sidrec.comparison.baselines.linear import ease_baseline, ease_weights, next_item_baseline
from sidrec.comparison.baselines.trained import dense_queries
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.errors import DataError
from sidrec.generator.scorers.lexical import LexicalScorer
from sidrec.types import Request

A, B, C, D, E = range(5)


def asks(*history):
    return Request("x", "recommendation", "", history, ())


def test_next_item_follows_the_order_of_train(corpus):
    ranked = next_item_baseline(corpus, [asks(A), asks(B)], top_k=1)
    assert ranked.items.tolist() == [[B], [C]]


def test_ease_minimizes_its_own_objective():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 20, 90), generator.integers(0, 6, 90)
    found = ease_weights(users, items, num_users=20, num_items=6, ridge=2.0).double().numpy()
    consumed = np.zeros((20, 6))
    consumed[users, items] = 1.0

    def objective(weights):
        return ((consumed - consumed @ weights) ** 2).sum() + 2.0 * (weights**2).sum()

    assert np.diag(found).tolist() == [0.0] * 6
    for _ in range(20):
        step = generator.normal(size=(6, 6)) * 1e-2
        np.fill_diagonal(step, 0.0)
        assert objective(found + step) > objective(found)


def test_ease_is_the_inverse_over_its_diagonal():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 30, 200), generator.integers(0, 9, 200)
    consumed = np.zeros((30, 9))
    consumed[users, items] = 1.0
    inverse = np.linalg.inv(consumed.T @ consumed + 0.5 * np.eye(9))
    expected = torch.tensor(-inverse / np.diag(inverse), dtype=torch.float32).fill_diagonal_(0.0)
    found = ease_weights(users, items, num_users=30, num_items=9, ridge=0.5)
    torch.testing.assert_close(found, expected)


def test_ease_by_hand_with_and_without_recency(corpus):
    plain = ease_baseline(corpus, [asks(A, C)], top_k=1, half_life_items=None)
    recent = ease_baseline(corpus, [asks(A, C)], top_k=1, half_life_items=1.0)
    train = corpus.train_interactions()
    weights = ease_weights(
        train.user_index, train.item_index, num_users=3, num_items=5, ridge=100.0
    )
    assert plain.items.tolist() == recent.items.tolist() == [[B]]
    torch.testing.assert_close(plain.scores[0, 0], weights[A, B] + weights[C, B])
    torch.testing.assert_close(recent.scores[0, 0], weights[A, B] / 2 + weights[C, B])


def test_the_own_history_is_left_out(corpus):
    for baseline in (next_item_baseline, ease_baseline):
        more = {"half_life_items": None} if baseline is ease_baseline else {}
        requests = recommendation_requests(corpus, "test")
        ranked = baseline(corpus, requests, top_k=5, **more)
        for items, request in zip(ranked.items.tolist(), requests, strict=True):
            assert not set(items) & set(request.history)


def test_ease_names_a_catalogue_that_is_too_large(corpus, monkeypatch):
    monkeypatch.setattr(linear, "_MOST_EASE_ITEMS", 4)
    with pytest.raises(DataError, match=r"5 are above 4. Use --system next_item"):
        ease_baseline(corpus, [asks(A)], top_k=1, half_life_items=None)


def test_hybrid_scores_are_weighed_sums_that_validation_chose(tiny):
    corpus = Corpus.load(tiny.corpus)
    requests = search_requests(corpus, "test")
    ranked = hybrid_baseline(corpus, requests, run=tiny.encoder_run, top_k=corpus.num_items)
    dense, texts = dense_queries(corpus, tiny.encoder_run), [one.query for one in requests]
    parts = [
        dense.embed(texts) @ dense.items.T,
        torch.from_numpy(LexicalScorer.of_texts(corpus.item_texts()).scores(texts)),
    ]
    columns = [part.gather(1, ranked.items).flatten().double() for part in parts]
    features = torch.stack([*columns, torch.ones_like(columns[0])], dim=1)
    solved = torch.linalg.lstsq(features, ranked.scores.flatten().double()[:, None])
    weights = solved.solution[:, 0]
    assert (weights[:2] > -1e-3).all()
    assert abs(weights[2]) < 1e-3
    rebuilt = features @ weights
    torch.testing.assert_close(rebuilt, ranked.scores.flatten().double(), atol=1e-3, rtol=1e-3)
