"""Training steps of SASRec, ENMF and learned quantizers on a pretended GPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidrec.comparison.baselines.sasrec import SasRec
from sidrec.comparison.baselines.sasrec_data import WindowBatch, padded
from sidrec.encoder.enmf.datamodule import UserBatch
from sidrec.encoder.enmf.module import Enmf
from sidrec.semantic_ids.learned.datamodule import PairedVectors, VectorBatch
from sidrec.semantic_ids.learned.module import QuantizerModule
from sidrec.types import Request
from tests.fake_gpu.device import GPU, move, pretended_gpu, to_gpu
from tests.semantic_ids.learned.test_learned import LFQ, VAE

WINDOWS = WindowBatch(
    padded([np.array(row) for row in ([3, 1, 4, 1, 5], [2], [7, 0])], at_most=6),
    padded([np.array(row) for row in ([1, 4, 1, 5, 8], [6], [0, 3])], at_most=6),
    2.7,
)
USERS = UserBatch(
    torch.tensor([3, 0]), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 5, 0, 2, 8])
)
VECTORS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
PAIRS = PairedVectors(
    VECTORS[:4], VECTORS[4:8], torch.tensor([4, 5, 6, 4]), torch.tensor([[4], [5], [-1], [4]])
)


def sasrec():
    module = SasRec(dim=8, num_heads=2, max_history_items=6, dropout=0.3)
    module._build(9)
    return module


def enmf():
    module = Enmf(dim=4)
    module._build(5, 9)
    return module


def quantizer(method):
    module = QuantizerModule(method, collaborative_weight=0.1)
    module.vectors, module._trainer = VECTORS, SimpleNamespace(world_size=1)
    module.configure_model()
    return module


def rq_vae(**changes):
    module = quantizer(replace(VAE, init="random", **changes))
    module.core.train()
    return module


TRAININGS = {
    "SASRec": (sasrec, WINDOWS),
    "ENMF": (enmf, USERS),
    "RQ-VAE": (rq_vae, VectorBatch(VECTORS[:20], PAIRS)),
    "RQ-VAE, dead codes": (
        lambda: rq_vae(dead_code_share=0.9, diversity_weight=0.1),
        VectorBatch(VECTORS[:10], None),
    ),
    "Residual-LFQ": (lambda: quantizer(LFQ), VectorBatch(VECTORS[:20], PAIRS)),
}


def ready(make, monkeypatch):
    """Return a module with the same weights each time, around which no trainer works."""
    torch.manual_seed(0)
    module = make().train()
    module._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(seed=1), current_epoch=0, global_rank=0
    )
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    if isinstance(module, QuantizerModule):
        monkeypatch.setattr(module, "_batch_size", lambda: 20)
    return module


def one_step(module, batch):
    """Take a step as Lightning does; return the loss, and all weights and buffers."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.zero_grad()
    module.on_train_batch_start(batch, 0)
    loss = module.training_step(batch, 0)
    loss.backward()
    module.guard.check(module.parameters())
    optimizer.step()
    return loss.detach(), dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize("name", list(TRAININGS))
def test_a_step_waits_for_nothing_and_learns_what_the_cpu_learns(name, monkeypatch):
    make, batch = TRAININGS[name]
    expected, weights = one_step(ready(make, monkeypatch), batch)
    with pretended_gpu() as gpu:
        module = move(ready(make, monkeypatch))
        module._device = GPU
        moved = to_gpu(batch)
        gpu.reset()
        loss, found = one_step(module, moved)
        assert not gpu.reads, gpu.places
        assert set(gpu.any_order) <= {"index_put"}  # gradients: the switch fixes them
        torch.testing.assert_close(loss.cpu(), expected)
        assert found.keys() == weights.keys()
        for key, one in found.items():
            torch.testing.assert_close(one.detach().cpu(), weights[key].detach(), msg=key)


def test_sasrec_reads_the_scores_of_all_requests_at_once(monkeypatch):
    requests = [Request(str(n), "recommendation", "", (n % 9, 3), (1,)) for n in range(300)]
    module = ready(sasrec, monkeypatch).eval()
    expected = module._scores(requests)
    with pretended_gpu() as gpu:
        move(module)
        module._device = GPU
        gpu.reset()
        found = module._scores(requests)
        assert gpu.reads == {"to_cpu": 1}, gpu.places
    np.testing.assert_allclose(found, expected, rtol=1e-5)
