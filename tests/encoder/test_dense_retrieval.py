import math

import pytest
import torch

from sidrec.encoder.dense_retrieval import dense_recall, mean_history, own_slice
from sidrec.types import Request
from tests.ranks import run_on_ranks

ITEMS = torch.eye(4)


def search(*relevant):
    return Request("r", "search", "words", (), relevant)


def test_mean_history_by_hand():
    found = mean_history(ITEMS, [(0, 1, 2), (), (3, 3)], most_recent=2)
    assert found.tolist() == [[0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_recall_by_hand():
    questions = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.0, 0.1, 0.2, 0.9]])
    found = dense_recall(questions, ITEMS, [search(1), search(3, 0)], ks=(1, 2, 10))
    assert found == {1: 0.25, 2: 0.75, 10: 1.0}  # (0 + 1/2)/2, (1 + 1/2)/2


def test_own_history_is_no_candidate():
    request = Request("u", "recommendation", "", (0, 2), (1,))
    questions = torch.tensor([[0.9, 0.1, 0.9, 0.0]])
    assert dense_recall(questions, ITEMS, [request], ks=(1,)) == {1: 1.0}


def test_requests_without_answer_do_not_count():
    questions = torch.eye(4)[:2]
    assert dense_recall(questions, ITEMS, [search(0), search()], ks=(1,)) == {1: 1.0}
    assert math.isnan(dense_recall(questions[:0], ITEMS, [], ks=(1,))[1])


def test_any_chunking_gives_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    questions, items = (torch.randn(n, 5, generator=generator) for n in (30, 50))
    requests = [search(row, row + 7) for row in range(30)]
    whole = dense_recall(questions, items, requests, ks=(10,))
    monkeypatch.setattr("sidrec.encoder.dense_retrieval._SCORES_AT_ONCE", 50 * 7)
    assert dense_recall(questions, items, requests, ks=(10,)) == whole


def everything():
    generator = torch.Generator().manual_seed(0)
    questions, items = (torch.randn(n, 5, generator=generator) for n in (31, 50))
    return questions, items, [search(row, row + 7) for row in range(31)]


def ask_own_share(rank, world_size, tmp_path):
    questions, items, requests = everything()
    own = own_slice(requests)
    first = 0 if rank == 0 else len(requests) - len(own)
    found = dense_recall(questions[first : first + len(own)], items, own, ks=(5, 10))
    torch.save(found, tmp_path / f"{rank}.pt")


def test_any_number_of_ranks_gives_the_same(tmp_path):
    run_on_ranks(ask_own_share, tmp_path)
    expected = dense_recall(*everything(), ks=(5, 10))
    assert 0 < expected[5] < 1
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-12)
