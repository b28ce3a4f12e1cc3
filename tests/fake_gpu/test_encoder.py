"""Training step of the bi-encoder on a pretended GPU, on one rank and on two."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import BertConfig, BertModel

from sidrec.encoder.dense_retrieval import mean_history
from sidrec.encoder.encoder_settings import LossSettings, TowerSettings
from sidrec.encoder.module import BiEncoder
from sidrec.encoder.tower import TextTower
from sidrec.pairs.sentence_embedding import SentenceEmbedding
from sidrec.types import PairBatch, TextTokens
from tests.fake_gpu.device import GPU, move, pretended_gpu, to_gpu

BERT = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tokens(*lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(5, 30, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TextTokens(ids * mask, mask, lengths)


BATCH = PairBatch(
    "search",
    tokens(3, 5, 2, 4),
    tokens(6, 2, 7, 6),
    torch.tensor([3, 1, 4, 1]),
    torch.tensor([[3, 4], [1, -1], [4, -1], [1, 2]]),
    torch.tensor([-1.0, -2.0, -3.0, -2.0]),
)
OPTIONS = {
    "plain": {},
    "symmetric, logQ": {
        "loss": LossSettings(symmetric=True, logq_correction=("search", "recommendation"))
    },
    "two length groups": {"length_groups": 2},
    "gradient cache": {"grad_cache_chunk": 2},
}


def encoder(monkeypatch, *, loss=LossSettings(), **tower):
    module = BiEncoder(tower=TowerSettings(encoder="never loaded", **tower), loss=loss)
    torch.manual_seed(0)
    module.tower = TextTower.__new__(TextTower)
    torch.nn.Module.__init__(module.tower)
    groups = module.tower_settings.length_groups
    module.tower._take(BertModel(BertConfig(**BERT)), None, SentenceEmbedding(), groups)
    module._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(seed=1), current_epoch=0, global_rank=0
    )
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    return module


def one_step(module, batch):
    module.zero_grad()
    module.on_train_batch_start(batch, 0)
    loss = module.training_step(batch, 0)
    loss.backward()
    module.guard.check(module.parameters())  # before the optimizer's step
    return loss.detach(), [one.grad.detach().clone() for one in module.parameters()]


@pytest.mark.parametrize("options", list(OPTIONS))
def test_a_step_waits_for_nothing_and_learns_what_the_cpu_learns(options, monkeypatch):
    module = encoder(monkeypatch, **OPTIONS[options])
    expected, gradients = one_step(module, BATCH)
    with pretended_gpu() as gpu:
        move(module)
        loss, found = one_step(module, to_gpu(BATCH))
        assert not gpu.reads, gpu.places
        torch.testing.assert_close(loss.cpu(), expected)
        for ours, theirs in zip(found, gradients, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-6, rtol=1e-4)


@pytest.fixture
def _two_ranks():
    """Rank 0 of two; what the other one sends is never there, so only counts mean something."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_two_ranks")
def test_ranks_exchange_a_fixed_number_of_times(monkeypatch):
    module = encoder(monkeypatch, **OPTIONS["symmetric, logQ"])
    with pretended_gpu() as gpu:
        move(module)
        one_step(module, to_gpu(BATCH))
        assert not gpu.reads, gpu.places
        # embeddings of both sides, items, frequencies, known positives; gradients of both, loss
        assert gpu.collectives == {"allgather": 5, "allreduce": 3}


def test_users_are_the_same_on_both_devices():
    items = torch.nn.functional.normalize(torch.randn(9, 4), dim=1)
    histories = [(1, 2, 3), (), (8, 0)]
    expected = mean_history(items, histories, most_recent=2)
    with pretended_gpu() as gpu:
        found = mean_history(items.to(GPU), histories, most_recent=2)
        assert not gpu.any_order
        torch.testing.assert_close(found.cpu(), expected)
