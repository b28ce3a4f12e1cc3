"""One training step without a trainer: weights of the losses, and the seed of dropout."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.training import module
from sidrec.generator.training.module import JointGenerator
from tests.generator.training import MODEL

ONE = torch.zeros(1, dtype=torch.long)
TASKS = ("search", "recommendation")


def batch(task):
    return GeneratorBatch(task, [], ONE, ONE, ONE[None], ONE, ONE[None], ONE)


class ConstantLoss(nn.Module):
    def forward(self, batch, *, label_smoothing):
        return torch.tensor([1.0, 2.0])  # one per level


@pytest.fixture
def model(monkeypatch):
    made = JointGenerator(**{"semantic_ids": "never loaded", **MODEL})
    made.model = ConstantLoss()
    corpus = SimpleNamespace(item_ids=list)
    monkeypatch.setattr(made, "_data", lambda: SimpleNamespace(seed=1, corpus=corpus))
    monkeypatch.setattr(made, "log", lambda *_, **__: None)
    return made


def test_each_task_has_its_weight(model):
    losses = [model.training_step(batch(task), 0).item() for task in TASKS]
    weights = [MODEL["search_weight"], MODEL["recommendation_weight"]]
    assert weights[0] != weights[1]
    assert losses == pytest.approx([3 * weight for weight in weights])  # the levels' sum


def seed_of(model, monkeypatch, rank, step):
    monkeypatch.setattr(module, "rank_and_world_size", lambda: (rank, 2))
    model.on_train_batch_start(batch("search"), step)
    return torch.initial_seed()


def test_dropout_is_seeded_by_rank_and_step(model, monkeypatch):
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seeds = [seed_of(model, monkeypatch, *place) for place in places]
    assert len(set(seeds)) == 4
    assert [seed_of(model, monkeypatch, *place) for place in places] == seeds
