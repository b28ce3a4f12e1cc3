"""Quantizers trained by Lightning: exact resume, ranks, pairs of items, what is refused."""

import os
from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from sidrec.errors import ConfigError, DataError
from sidrec.semantic_ids.learned.datamodule import VectorDataModule
from sidrec.semantic_ids.learned.module import QuantizerModule
from sidrec.training.numbered_batches import BatchNumber
from tests.encoder.test_module import Stop, equal
from tests.ranks import run_on_ranks
from tests.semantic_ids.learned.test_learned import LFQ, VAE
from tests.settings import made

METHOD = replace(VAE, codebook_sizes=(8, 4), dead_code_share=0.5)  # many dead codes: many draws
MODEL = {
    "learning_rate": 1e-2,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "decay": "cosine",
    "collaborative_weight": 0.1,
    "collaborative_temperature": 0.1,
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
DATA = {
    "batch_size": 20,
    "seed": 1,
    "pairs_per_batch": 16,
    "window_size": 3,
    "max_anchors_per_user": 10,
}


def train(bundle, corpus, *, folder=None, every=None, stop=None, resume=None, **settings):
    """Train 3 epochs of 3 steps; return trainer and module."""
    torch.manual_seed(0)
    model = {"method": METHOD, "semantic_ids": str(bundle)} | MODEL | settings.pop("model", {})
    data = {"corpus": str(corpus)} | DATA | settings.pop("data", {})
    callbacks = [Stop(stop)] if stop else []
    if every:
        saved = {"save_top_k": -1, "every_n_train_steps": every, "monitor": None}
        callbacks.insert(0, ModelCheckpoint(folder, filename="{step}", **saved))
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "logger": False,
            "enable_checkpointing": bool(every),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": callbacks,
            **settings,
        }
    )
    module = made(QuantizerModule, **model)
    loaded = {"ckpt_path": resume, "weights_only": True if resume else None}
    try:
        trainer.fit(module, datamodule=made(VectorDataModule, **data), **loaded)
    except KeyError:
        if not stop:
            raise
    return trainer, module


@pytest.mark.parametrize("after", [2, 3, 7])
def test_interrupted_and_resumed_equals_undisturbed(bundle, corpus, tmp_path, after):
    whole, expected = train(bundle, corpus.folder)
    assert whole.global_step == 9
    train(bundle, corpus.folder, folder=tmp_path, every=after, stop=after)
    checkpoint = str(tmp_path / f"step={after}.ckpt")
    settings = {"folder": tmp_path, "every": after, "resume": checkpoint}
    trainer, module = train(bundle, corpus.folder, **settings)
    assert trainer.global_step == 9
    assert equal(module, expected)


def test_batches_are_a_function_of_their_number(bundle, corpus):
    trainer, _ = train(bundle, corpus.folder, max_steps=1)
    batches = trainer.datamodule.batches
    assert len(batches) == 3
    vectors = [batches[BatchNumber(4, step)].vectors for step in range(3)]
    seen = torch.cat(vectors).sort(dim=0).values
    assert torch.equal(seen, batches.vectors.sort(dim=0).values)  # an epoch holds every item
    again = batches[BatchNumber(4, 1)]
    assert torch.equal(again.vectors, vectors[1])
    assert torch.equal(again.pairs.right, batches.vectors[again.pairs.right_item])
    halves = [replace(batches, batch_size=10, world_size=2, rank=rank) for rank in range(2)]
    both = torch.cat([half[BatchNumber(4, 1)].vectors for half in halves])
    assert torch.equal(both, vectors[1])


def test_the_collaborative_term_draws_pairs_together_and_costs_reconstruction(bundle, corpus):
    found = {}
    for weight in (1e-6, 0.3):
        changes = {"model": {"collaborative_weight": weight}, "data": {"pairs_per_batch": 64}}
        trainer, module = train(bundle, corpus.folder, max_epochs=20, **changes)
        unseen = [trainer.datamodule.batches[BatchNumber(100, step)].pairs for step in range(3)]
        with torch.no_grad():
            together = sum(module._collaborative(pairs).item() for pairs in unseen) / 3
        found[weight] = (together, trainer.callback_metrics["train/reconstruction_loss"].item())
    assert found[0.3][0] < 0.7 * found[1e-6][0]  # 4.0 and 8.7 nats
    assert found[0.3][1] > found[1e-6][1]


def test_lookup_free_codes_train_too(bundle, corpus):
    _, module = train(bundle, corpus.folder, model={"method": LFQ})
    assert module.settings()["name"] == "residual_lfq"
    assert module.fitted().codebook_sizes == (16, 16)


def test_what_does_not_fit_together_is_refused(bundle, corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"collaborative_weight needs pairs of items: give"):
        train(bundle, corpus.folder, data={"corpus": None})
    with pytest.raises(ConfigError, match=r"names no bundle; give --from RUN"):
        train(bundle, corpus.folder, model={"semantic_ids": None})
    with pytest.raises(ConfigError, match=r"60 items, fewer than the 64 codes"):
        train(bundle, corpus.folder, model={"method": replace(METHOD, codebook_sizes=(64,))})
    with pytest.raises(ConfigError, match=r"collaborative_weight is -1.0, expected 0 or more"):
        train(bundle, corpus.folder, model={"collaborative_weight": -1.0})
    settings = {"folder": tmp_path, "every": 2}
    train(bundle, corpus.folder, stop=2, **settings)
    settings["resume"] = str(tmp_path / "step=2.ckpt")
    with pytest.raises(ConfigError, match=r"keep seed 1 \(now 2\)"):
        train(bundle, corpus.folder, data={"seed": 2}, **settings)


def test_a_corpus_of_other_items_is_refused(bundle, tmp_path):
    from tests.pairs import made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "SIZES", replace(made.SIZES, seed=4))
        other = made.make_corpus(tmp_path / "corpus")
    with pytest.raises(DataError, match=r"has fingerprint .*; give the corpus that was encoded"):
        train(bundle, other.folder)


def on_ranks(rank, world_size, tmp_path):
    local = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= local | sizes | master
    bundle, corpus = torch.load(tmp_path / "input.pt")
    settings = {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    trainer, module = train(
        bundle, corpus, data={"batch_size": 10, "pairs_per_batch": 8}, **settings
    )
    torch.save((module.state_dict(), trainer.global_step), tmp_path / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_one_network(bundle, corpus, tmp_path):
    torch.save((str(bundle), str(corpus.folder)), tmp_path / "input.pt")
    run_on_ranks(on_ranks, tmp_path)
    (first, steps), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert steps == 9
    assert all(torch.equal(first[name], second[name]) for name in first)
