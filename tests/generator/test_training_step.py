"""One training step without a trainer: weights of the losses, and the seed of dropout."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidrec.errors import ConfigError
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.generator_settings import GeneratorLossSettings
from sidrec.generator.training.module import JointGenerator

ONE = torch.zeros(1, dtype=torch.long)
TASKS = ("search", "recommendation")


def batch(task):
    return GeneratorBatch(task, [], ONE, ONE, ONE[None], ONE, ONE[None], ONE, ONE)


class ConstantLoss(nn.Module):
    def forward(self, batch, *, label_smoothing):
        return torch.tensor([1.0, 2.0])  # one per level


@pytest.fixture
def model(monkeypatch):
    made = JointGenerator(
        "never loaded",
        "no encoder",
        loss=GeneratorLossSettings(search_weight=1.0, recommendation_weight=0.5),
    )
    made.model = ConstantLoss()
    data = SimpleNamespace(seed=1, corpus=SimpleNamespace(item_ids=list))
    monkeypatch.setattr(made, "_data", lambda: data)
    monkeypatch.setattr(made, "log", lambda *_, **__: None)
    made._trainer = SimpleNamespace(datamodule=data, current_epoch=0)
    return made


def test_each_task_has_its_weight(model):
    losses = [model.training_step(batch(task), 0).item() for task in TASKS]
    assert losses == pytest.approx([3.0, 1.5])  # the levels' sum


def seed_of(model, rank, step):
    model._trainer.global_rank = rank
    model.on_train_batch_start(batch("search"), step)
    return torch.initial_seed()


def test_dropout_is_seeded_by_rank_and_step(model):
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seeds = [seed_of(model, *place) for place in places]
    assert len(set(seeds)) == 4
    assert [seed_of(model, *place) for place in places] == seeds


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_of_16_bits_are_refused(model, precision):
    model._trainer.precision = precision
    with pytest.raises(ConfigError, match=f"trainer.precision {precision} keeps .* bf16-mixed"):
        model.setup("fit")
