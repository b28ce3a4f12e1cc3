from dataclasses import replace

import pytest

from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.requests import recommendation_requests, search_requests
from sidrec.corpus.store import Corpus
from sidrec.types import Request
from tests.corpus.small import QUERIES, ROWS, SETTINGS, build_small, raw_catalogue


@pytest.fixture
def corpus(tmp_path):
    build_small(tmp_path / "out")
    return Corpus.load(tmp_path / "out")


def test_test_requests_by_hand(corpus):
    assert list(recommendation_requests(corpus, "test")) == [
        Request("b", "recommendation", "", (0, 1), (2,)),
        Request("a", "recommendation", "", (1, 2, 0), (3,)),
    ]
    assert list(search_requests(corpus, "test")) == [
        Request("q3", "search", "second or third", (), (1, 2))
    ]


def test_valid_requests_see_train_only(corpus):
    assert list(recommendation_requests(corpus, "valid")) == [
        Request("b", "recommendation", "", (0,), (1,)),
        Request("a", "recommendation", "", (1, 2), (0,)),
    ]
    assert [request.request_id for request in search_requests(corpus, "valid")] == ["q4"]


def test_requests_are_a_lazy_sequence(corpus):
    requests = search_requests(corpus, "train")
    assert len(requests) == 2
    assert requests[-1].request_id == "q2"
    assert [request.request_id for request in requests[1:]] == ["q2"]
    with pytest.raises(IndexError):
        requests[2]


def test_temporal_asks_for_the_next_item_of_each_user_who_has_one(tmp_path):
    rows = [*ROWS, ("d", "i1", 50), ("d", "i2", 60)]  # d begins after the cut: nothing to go by
    settings = replace(SETTINGS, split="temporal", temporal_fractions=(0.4, 0.2))
    build_corpus(raw_catalogue(rows), QUERIES, tmp_path / "out", settings)
    corpus = Corpus.load(tmp_path / "out")
    # moments 1 5 5 7 | 8 10 | 20 30 40 50 60
    assert list(recommendation_requests(corpus, "test")) == [
        Request("a", "recommendation", "", (1,), (2,))
    ]
    assert list(recommendation_requests(corpus, "valid")) == [
        Request("c", "recommendation", "", (0,), (1,))
    ]
    train = corpus.train_interactions()
    assert max(train.timestamp) < 8


def test_histories_of_train_are_no_questions(corpus):
    with pytest.raises(ValueError, match=r"got 'train'"):
        recommendation_requests(corpus, "train")
