"""One training step without a trainer: weights of the losses, and the seed of dropout."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from sidrec.encoder.encoder_settings import LossSettings, TowerSettings
from sidrec.encoder.module import BiEncoder
from sidrec.errors import ConfigError
from sidrec.types import PairBatch, TextTokens

TOKENS = TextTokens(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
TASKS = ("search", "recommendation")
NO_MORE = torch.full((2, 1), -1)


def batch(task):
    return PairBatch(task, TOKENS, TOKENS, torch.tensor([0, 1]), NO_MORE, torch.zeros(2))


@pytest.fixture
def model(monkeypatch):
    made = BiEncoder(
        tower=TowerSettings(encoder="never loaded"),
        loss=LossSettings(temperature=1.0, query_item_weight=1.0, item_item_weight=0.5),
    )
    monkeypatch.setattr(made, "embed", lambda _: torch.eye(2))
    monkeypatch.setattr(made, "log", lambda *_, **__: None)
    made._trainer = SimpleNamespace(datamodule=SimpleNamespace(seed=1), current_epoch=0)
    return made


def test_each_task_has_its_weight(model):
    search, recommendation = (model.training_step(batch(task), 0) for task in TASKS)
    assert (recommendation / search).item() == pytest.approx(0.5)  # the same embeddings


def seed_of(model, rank, step):
    model._trainer.global_rank = rank
    model.on_train_batch_start(batch("search"), step)
    return torch.initial_seed()


def test_dropout_is_seeded_by_rank_and_step(model):
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    seeds = [seed_of(model, *place) for place in places]
    assert len(set(seeds)) == 4
    assert [seed_of(model, *place) for place in places] == seeds


def test_lightnings_own_sharding_is_refused(model):
    model._trainer.precision, model._trainer.strategy = "32-true", FSDPStrategy()
    with pytest.raises(ConfigError, match=r"give strategy=sidrec\.ShardedStrategy\(\)"):
        model.setup("fit")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_of_16_bits_are_refused(model, precision):
    model._trainer.precision = precision
    with pytest.raises(ConfigError, match=f"trainer.precision {precision} keeps .* bf16-mixed"):
        model.setup("fit")
