"""One training step without a trainer: weights of the losses, and the seed of dropout."""

from types import SimpleNamespace

import pytest
import torch

from sidrec.encoder import module
from sidrec.encoder.module import BiEncoder
from sidrec.types import PairBatch, TextTokens
from tests.encoder.test_module import MODEL

TOKENS = TextTokens(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
TASKS = ("search", "recommendation")
NO_MORE = torch.full((2, 1), -1)


def batch(task):
    return PairBatch(task, TOKENS, TOKENS, torch.tensor([0, 1]), NO_MORE, torch.zeros(2))


@pytest.fixture
def model(monkeypatch):
    made = BiEncoder(encoder="never loaded", **MODEL)
    monkeypatch.setattr(made, "_embed", lambda _: torch.eye(2))
    monkeypatch.setattr(made, "_log_loss", lambda *_: None)
    monkeypatch.setattr(made, "_data", lambda: SimpleNamespace(seed=1))
    return made


def test_each_task_has_its_weight(model):
    search, recommendation = (model.training_step(batch(task), 0) for task in TASKS)
    expected = MODEL["item_item_weight"] / MODEL["query_item_weight"]
    assert expected != 1
    assert (recommendation / search).item() == pytest.approx(expected)  # the same embeddings


def seed_of(model, monkeypatch, rank, step):
    monkeypatch.setattr(module, "rank_and_world_size", lambda: (rank, 2))
    model.on_train_batch_start(batch("search"), step)
    return torch.initial_seed()


def test_dropout_is_seeded_by_rank_and_step(model, monkeypatch):
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seeds = [seed_of(model, monkeypatch, *place) for place in places]
    assert len(set(seeds)) == 4
    assert [seed_of(model, monkeypatch, *place) for place in places] == seeds
