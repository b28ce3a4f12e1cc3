"""ENMF: the loss is the naive sum, a resumed run an undisturbed one, a tiny corpus is learned."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from sidrec.corpus.requests import recommendation_requests
from sidrec.distributed import sum_over_ranks
from sidrec.encoder.encode import encode_catalogue, encoder_hash
from sidrec.encoder.enmf.datamodule import UserDataModule, users_of
from sidrec.encoder.enmf.module import Enmf, FactorTower, enmf_loss, negative_weights_of
from sidrec.errors import ConfigError
from sidrec.training.numbered_batches import BatchNumber
from sidrec.types import Request
from tests.encoder.test_module import Stop, equal
from tests.ranks import run_on_ranks
from tests.settings import made

MODEL = {
    "dim": 8,
    "dropout": 0.2,
    "negative_weight": 0.3,
    "popularity_exponent": 0.5,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "warmup_fraction": 0.0,
    "decay": "constant",
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def naive(users, items, factors, consumed, negative_weights):
    total = torch.zeros((), dtype=users.dtype)
    for u in range(len(users)):
        for v in range(len(items)):
            score = (factors * users[u] * items[v]).sum()
            weight = 1.0 if consumed[u, v] else negative_weights[v]
            total = total + weight * (float(consumed[u, v]) - score) ** 2
    return total


def test_loss_and_gradient_are_those_of_the_naive_sum():
    made = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=made, dtype=torch.float64).requires_grad_()  # noqa: E731
    users, items, factors = draw(5, 4), draw(7, 4), draw(4)
    consumed = torch.rand(5, 7, generator=made) < 0.4
    weights = torch.rand(7, generator=made, dtype=torch.float64)
    rows, columns = consumed.nonzero(as_tuple=True)
    fast = enmf_loss(
        users,
        items,
        factors,
        positive_user=rows,
        positive_item=columns,
        negative_weights=weights,
    )
    slow = naive(users, items, factors, consumed, weights)
    torch.testing.assert_close(fast, slow)
    parts = (users, items, factors)
    for quick, plain in zip(
        torch.autograd.grad(fast, parts), torch.autograd.grad(slow, parts), strict=True
    ):
        torch.testing.assert_close(quick, plain)


def test_loss_by_hand():
    """One user, two items: scores 2·.5 = 1 (consumed, no error) and 2·.25 = .5 (not consumed)."""
    loss = enmf_loss(
        torch.tensor([[1.0]]),
        torch.tensor([[0.5], [0.25]]),
        torch.tensor([2.0]),
        positive_user=torch.tensor([0]),
        positive_item=torch.tensor([0]),
        negative_weights=torch.tensor([9.0, 0.1]),
    )
    assert loss.item() == pytest.approx(0.1 * 0.25, rel=1e-4)


def test_negative_weights_have_their_mean():
    weights = negative_weights_of(torch.tensor([0, 1, 4]), mean_weight=0.2, exponent=0.5)
    assert weights.tolist() == pytest.approx([0.0, 0.2, 0.4])
    even = negative_weights_of(torch.tensor([0, 1, 4]), mean_weight=0.2, exponent=0.0)
    assert even.tolist() == pytest.approx([0.2] * 3)


def test_unknown_user_scores_nothing():
    tower = FactorTower(2, 3, 4)
    assert tower.questions(torch.tensor([-1]))[0].tolist() == [0.0] * 4


def test_users_of_requests(corpus):
    requests = [*recommendation_requests(corpus, "test"), Request("nobody", "search", "", (), ())]
    found = users_of(corpus, requests)
    assert found[-1] == -1
    starts = corpus.timelines().user_starts
    for row, request in zip(found[:5].tolist(), requests, strict=False):
        assert corpus.interactions[int(starts[row])]["user_id"] == request.request_id


def test_a_batch_holds_whole_users(corpus):
    data = UserDataModule(str(corpus.folder), batch_size=7, seed=1)
    train = corpus.train_interactions()
    seen = []
    for (number,) in data.train_dataloader().batch_sampler:
        batch = data.batches[number]
        for row, user in enumerate(batch.user_index.tolist()):
            own = set(train.item_index[train.user_starts[user] : train.user_starts[user + 1]])
            assert set(batch.positive_item[batch.positive_user == row].tolist()) == own
            seen.append(user)
    assert set(seen) == set(range(corpus.num_users))


def train(folder, *, epochs=4, stop=None, resume=None, every=None, where=None, **trainer):
    model, data = made(Enmf, **MODEL), UserDataModule(str(folder), batch_size=9, seed=2)
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
            "max_epochs": epochs,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": bool(every),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": callbacks,
            **trainer,
        }
    )
    try:
        runner.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except KeyError:
        if not stop:
            raise
    return runner, model


@pytest.mark.parametrize("after", [2, 5, 7])
def test_resumed_equals_undisturbed(corpus, tmp_path, after):
    _, expected = train(corpus.folder)
    train(corpus.folder, stop=after, every=after, where=tmp_path)
    checkpoint = str(tmp_path / f"step={after}.ckpt")
    _, found = train(corpus.folder, resume=checkpoint, every=after, where=tmp_path)
    assert equal(found, expected)


def test_training_learns_who_consumed_what(corpus):
    runner, model = train(
        corpus.folder,
        epochs=40,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=40,
    )
    train_rows = corpus.train_interactions()
    scores = model.tower.questions(torch.arange(corpus.num_users)) @ model.tower.items.weight.T
    consumed = torch.zeros_like(scores, dtype=torch.bool)
    pairs = (train_rows.user_index.tolist(), train_rows.item_index.tolist())
    consumed[pairs] = True
    assert scores[consumed].mean() > scores[~consumed].mean() + 0.2
    assert 0 < float(runner.callback_metrics["val/recommendation/recall@30"]) <= 1
    recall = runner.callback_metrics["val/recommendation/recall@30"]
    assert float(runner.callback_metrics["val/recall_harmonic_mean"]) == pytest.approx(
        float(recall)
    )


def test_item_vectors_are_unit_vectors_of_the_corpus(corpus):
    tower = FactorTower(corpus.num_users, corpus.num_items, 6)
    made = encode_catalogue(tower, corpus, max_tokens=0, batch_size=1)
    torch.testing.assert_close(made.vectors.norm(dim=1), torch.ones(corpus.num_items))
    assert made.encoder_hash == encoder_hash(tower)
    assert made.corpus_fingerprint == corpus.fingerprint


def _gradient(world_size, rank, corpus):
    data = UserDataModule(corpus, batch_size=8 // world_size, seed=2)
    model = made(Enmf, **(MODEL | {"dropout": 0.0}))
    model.trainer = Mock(datamodule=data, current_epoch=0)
    model.log = Mock()
    torch.manual_seed(1)
    model.configure_model()
    model.training_step(data.batches[BatchNumber(0, 0)], 0).backward()
    return sum_over_ranks(model.tower.items.weight.grad) / world_size


def _compare(rank, world_size, tmp_path):
    alone = torch.load(tmp_path / "alone.pt", weights_only=True)
    corpus = (tmp_path / "corpus.txt").read_text()
    torch.testing.assert_close(_gradient(world_size, rank, corpus), alone)


def test_two_ranks_have_the_gradient_of_one(corpus, tmp_path):
    (tmp_path / "corpus.txt").write_text(str(corpus.folder))
    torch.save(_gradient(1, 0, str(corpus.folder)), tmp_path / "alone.pt")
    run_on_ranks(_compare, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"), [("dim", 0), ("dropout", 1.0), ("learning_rate", 0.0)]
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        made(Enmf, **(MODEL | {setting: value}))
