"""SASRec: nobody sees the future, every item is a target once, a cycle is learned, runs resume."""

import itertools
import json
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sidrec.comparison.baselines.sasrec import SasRec, SasRecModel, next_item_loss
from sidrec.comparison.baselines.sasrec_data import (
    WindowBatches,
    WindowDataModule,
    padded,
    windows_of,
)
from sidrec.corpus.requests import recommendation_requests
from sidrec.errors import ConfigError
from sidrec.generator.training.predictions import read_predictions
from sidrec.training.numbered_batches import BatchNumber
from sidrec.training.row_data import RowSchedule
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
    targets = torch.tensor([[0, -1]])
    loss = next_item_loss(states, torch.tensor([[1.0], [0.0]]), targets, mean_targets=2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)


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
    assert padded(rows, at_most=2).tolist() == [[3, 4], [5, -1], [-1, -1]]
    assert padded(rows, at_most=9, step=3).tolist() == [[3, 4, -1], [5, -1, -1], [-1, -1, -1]]


def windows_of_lengths(lengths, **settings):
    """Return a data module's batches over users with so many items each, and nothing else."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first, end = windows_of(starts, max_history_items=50)
    schedule = RowSchedule(len(first), 16, 1, seed=3, lengths=end - first, **settings)
    items = np.arange(starts[-1], dtype=np.int64) % 90
    return WindowBatches(schedule, 0, first, end, items, 50)


def test_batches_of_like_lengths_have_few_shapes_and_little_padding():
    lengths = np.random.default_rng(0).geometric(0.15, 2_000) + 1  # mean 8, like shop histories
    bucketed = windows_of_lengths(lengths, pool_batches=20)
    plain = windows_of_lengths(lengths, pool_batches=1)

    def places_per_target(batches):
        epoch = [batches[BatchNumber(0, step)] for step in range(len(batches))]
        shapes = {tuple(one.histories.shape) for one in epoch}
        assert len(shapes) <= 13  # 4, 8, ..., 48, 50
        targets = sum(int((one.targets >= 0).sum()) for one in epoch)
        assert epoch[0].mean_targets == pytest.approx(targets / len(epoch), rel=0.01)
        return sum(one.targets.numel() for one in epoch) / targets

    assert places_per_target(plain) > 3
    assert places_per_target(bucketed) < 1.5


class MatrixShapes(TorchDispatchMode):
    """Shapes of all matrix products; oneDNN keeps a primitive for each of them in bf16."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            tensors = [one for one in args if isinstance(one, torch.Tensor)]
            self.seen.add((str(func), *(tuple(one.shape) for one in tensors)))
        return func(*args, **(kwargs or {}))


def test_products_have_the_same_shapes_whatever_a_batch_holds():
    model = SasRecModel(90, **(SIZES | {"max_history_items": 50}))
    batches = windows_of_lengths(np.full(200, 7), pool_batches=5)
    shorter = windows_of_lengths(np.full(200, 6), pool_batches=5)
    shapes = []
    for batch in (batches[BatchNumber(0, 0)], shorter[BatchNumber(0, 0)]):
        with torch.autocast("cpu", torch.bfloat16), MatrixShapes() as products:
            states, items = model(batch.histories), model.items.weight
            next_item_loss(states, items, batch.targets, mean_targets=9.0).backward()
        shapes.append(products.seen)
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 3


def test_mixed_precision_scores_in_float32(synthetic, tmp_path):
    """bf16 has 8 bits: among 60 items of a trained model it would make ties and other lists."""
    lists = {}
    for precision in ("bf16-mixed", "32-true"):
        own = {"precision": precision, "default_root_dir": tmp_path / precision}
        runner, model, data = train(synthetic.folder, max_epochs=0, **own)
        runner.test(model, datamodule=data, verbose=False)
        found = read_predictions(tmp_path / precision / "predictions.parquet")
        lists[precision] = [one.items for one in found]
    assert lists["bf16-mixed"] == lists["32-true"]


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
        states, items = model(rows[:, :-1]), model.items.weight
        loss = next_item_loss(states, items, rows[:, 1:], mean_targets=float(rows[:, 1:].numel()))
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
