"""SASRec: nobody sees the future, every item is a target once, a cycle is learned, runs resume."""

import itertools
import json
import math

import lightning as L
import numpy as np
import pytest
import torch

from sidrec.comparison.baselines.sasrec import SasRec, SasRecModel, next_item_loss
from sidrec.comparison.baselines.sasrec_data import WindowDataModule, padded, windows_of
from sidrec.corpus.requests import recommendation_requests
from sidrec.errors import ConfigError
from sidrec.generator.training.predictions import read_predictions
from tests.encoder.test_module import Stop, equal
from tests.pairs.made import make_corpus
from tests.settings import made

SIZES = {"dim": 8, "num_blocks": 2, "num_heads": 2, "max_history_items": 6, "dropout": 0.0}
MODEL = SIZES | {
    "dropout": 0.1,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_fraction": 0.0,
    "decay": "constant",
    "top_k": 10,
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("sasrec") / "corpus")


def test_no_place_sees_what_comes_later():
    model = SasRecModel(5, **SIZES).eval()
    before, after = model(torch.tensor([[0, 1, 2, 3]])), model(torch.tensor([[0, 1, 4, 3]]))
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:], atol=1e-4)


def test_each_place_sees_all_before_it():
    model = SasRecModel(5, **SIZES).eval()
    states = [model(torch.tensor([row]))[0, 3] for row in ([0, 1, 2, 3], [4, 1, 2, 3])]
    assert not torch.allclose(*states, atol=1e-4)


def test_padding_changes_no_score():
    model = SasRecModel(5, **SIZES).eval()
    alone = model.scores(torch.tensor([[0, 1]]))
    beside = model.scores(torch.tensor([[0, 1, -1, -1], [0, 1, 2, 3]]))
    torch.testing.assert_close(alone[0], beside[0])
    assert model.scores(torch.tensor([[-1]])).tolist() == [[0.0] * 5]


def test_loss_by_hand():
    """Two items, scores 1 and 0 for the first place; the second place is padding."""
    states = torch.tensor([[[1.0], [9.0]]])
    loss = next_item_loss(states, torch.tensor([[1.0], [0.0]]), torch.tensor([[0, -1]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("longest", [1, 2, 3, 7])
def test_every_item_but_the_first_is_a_target_once(longest):
    starts = np.array([0, 5, 5, 6, 9, 20])
    first, end = windows_of(starts, max_history_items=longest)
    targets = [row for a, b in zip(first, end, strict=True) for row in range(a + 1, b)]
    expected = [row for a, b in itertools.pairwise(starts) for row in range(a + 1, b)]
    assert sorted(targets) == expected
    assert (end - first).max() <= longest + 1


def test_a_batch_shifts_by_one(synthetic):
    data = WindowDataModule(str(synthetic.folder), batch_size=4, max_history_items=6, seed=1)
    (number,) = next(iter(data.train_dataloader().batch_sampler))
    batch = data.batches[number]
    for history, target in zip(batch.histories, batch.targets, strict=True):
        length = int((history >= 0).sum())
        assert history[1:length].tolist() == target[: length - 1].tolist()
        assert (target >= 0).sum() == length


def test_padded_by_hand():
    rows = [np.array([3, 4]), np.array([5], np.int64), np.array([], np.int64)]
    assert padded(rows).tolist() == [[3, 4], [5, -1], [-1, -1]]


def train(folder, *, where=None, every=None, stop=None, resume=None, **trainer):
    model = made(SasRec, **MODEL)
    data = WindowDataModule(str(folder), batch_size=32, max_history_items=6, seed=2)
    callbacks = [Stop(stop)] if stop else []
    if every:
        callbacks.insert(
            0,
            L.pytorch.callbacks.ModelCheckpoint(
                where, filename="{step}", save_top_k=-1, every_n_train_steps=every, monitor=None
            ),
        )
    torch.manual_seed(5)
    runner = L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": bool(every),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "callbacks": callbacks,
            **trainer,
        }
    )
    try:
        runner.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except KeyError:
        if not stop:
            raise
    return runner, model, data


@pytest.mark.parametrize("after", [2, 4, 6])
def test_resumed_equals_undisturbed(synthetic, tmp_path, after):
    runner, expected, _ = train(synthetic.folder)
    assert runner.global_step > after
    train(synthetic.folder, stop=after, every=after, where=tmp_path)
    checkpoint = str(tmp_path / f"step={after}.ckpt")
    _, found, _ = train(synthetic.folder, resume=checkpoint, every=after, where=tmp_path)
    assert equal(found, expected)


def test_a_cycle_of_items_is_learned():
    """Item i is always followed by i + 1: after training that is the top score."""
    model = SasRecModel(5, **SIZES)
    rows = torch.stack([torch.arange(start, start + 7) % 5 for start in range(5)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = next_item_loss(model(rows[:, :-1]), model.items.weight, rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    model.eval()
    assert model.scores(torch.tensor([[2, 3], [4, -1]])).argmax(dim=1).tolist() == [4, 0]


def test_test_writes_lists_and_figures(synthetic, tmp_path):
    runner, model, data = train(synthetic.folder, default_root_dir=tmp_path, max_epochs=1)
    runner.test(model, datamodule=data, verbose=False)
    predictions = read_predictions(tmp_path / "predictions.parquet")
    assert {one.task for one in predictions} == {"recommendation"}
    assert all(len(one.items) == 10 for one in predictions)
    assert len(predictions) == len(recommendation_requests(synthetic, "test"))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= figures["recommendation/recall@10"] <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"dim": 7}, "must be a multiple of num_heads"), ({"dropout": 1.0}, "dropout must lie in")],
)
def test_settings_out_of_range_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        made(SasRec, **(MODEL | changed))
