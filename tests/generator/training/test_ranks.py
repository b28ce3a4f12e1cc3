"""The generator on two ranks: the figures, weights and resumed weights of one."""

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from sidrec.generator.scorers.prior_settings import PriorSettings
from tests.generator.trained import PLAIN, equal, make, train, trainer_for
from tests.ranks import as_elastic, run_on_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def on_ranks(rank, world_size, tmp_path):
    """Test the checkpoint, and take one training step whose gradient is kept."""
    as_elastic(rank, world_size, port=29541)
    corpus, semantic_ids, checkpoint = torch.load(tmp_path / "input.pt")
    ddp = {
        "devices": 2,
        "strategy": "ddp",
        "plugins": [TorchElasticEnvironment()],
    }
    model, data = make(corpus, semantic_ids)
    trainer_for(tmp_path, **ddp).test(
        model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    validated = {"limit_val_batches": 1.0, "val_check_interval": 3}
    _, trained = train(  # of four requests in one batch a task the other rank has none
        corpus,
        semantic_ids,
        tmp_path,
        model=PLAIN,
        data={"batch_size": 24, "valid_requests": 4},
        max_steps=6,
        **validated,
        **ddp,
    )
    torch.save(trained.state_dict(), tmp_path / f"weights-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_answer_and_train_as_one(corpus, semantic_ids, tmp_path, undisturbed):
    checkpoint = str(undisturbed[2] / "step=5.ckpt")
    torch.save((str(corpus.folder), semantic_ids, checkpoint), tmp_path / "input.pt")
    run_on_ranks(on_ranks, tmp_path)
    alone = tmp_path / "alone"
    model, data = make(str(corpus.folder), semantic_ids)
    trainer_for(alone).test(
        model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    for name in ("predictions.parquet", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
    _, expected = train(str(corpus.folder), semantic_ids, alone, model=PLAIN, max_steps=6)
    weights = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2)]
    for name, weight in expected.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        torch.testing.assert_close(weights[0][name], weight, atol=2e-5, rtol=1e-4)


def resume_on_ranks(rank, world_size, tmp_path):
    """Train without a break, then with one after which all ranks go on from the checkpoint."""
    as_elastic(rank, world_size, port=29542)
    corpus, semantic_ids = torch.load(tmp_path / "input.pt")
    ddp = {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    ddp |= {"data": {"batch_size": 24}, "every": 2, "max_steps": 6}
    _, expected = train(corpus, semantic_ids, tmp_path / "undisturbed", **ddp)
    train(corpus, semantic_ids, tmp_path / "broken", stop=4, **ddp)
    resumed, model = train(
        corpus, semantic_ids, tmp_path / "on", resume=str(tmp_path / "broken/step=4.ckpt"), **ddp
    )
    assert resumed.global_step == 6
    assert equal(model, expected)
    torch.save(model.state_dict(), tmp_path / f"weights-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_interrupted_and_resumed_equal_two_undisturbed(corpus, semantic_ids, tmp_path):
    torch.save((str(corpus.folder), semantic_ids), tmp_path / "input.pt")
    run_on_ranks(resume_on_ranks, tmp_path)
    weights = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def with_prior_on_ranks(rank, world_size, tmp_path):
    """Train a generator with the prior on, then answer the test requests with it."""
    as_elastic(rank, world_size, port=29543)
    ddp = {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    train_and_test_with_prior(tmp_path, torch.load(tmp_path / "input.pt"), 24, **ddp)


def train_and_test_with_prior(folder, places, batch_size, **settings):
    corpus, semantic_ids, encoder_run, checkpoint = places
    choice = PLAIN | {
        "text_input": "encoder_states",
        "encoder_run": encoder_run,
        "prior": PriorSettings(),
    }
    _, trained = train(
        corpus,
        semantic_ids,
        folder,
        model=choice,
        data={"batch_size": batch_size},
        max_steps=6,
        **settings,
    )
    rank = trained.global_rank
    torch.save(trained.state_dict(), folder / f"weights-{rank}.pt")
    if checkpoint is None:
        checkpoint = folder / "trained.ckpt"
        trained.trainer.save_checkpoint(checkpoint)
    model, data = make(corpus, semantic_ids, model=choice)
    trainer_for(folder, **settings).test(
        model, datamodule=data, ckpt_path=str(checkpoint), weights_only=True, verbose=False
    )


@pytest.mark.slow
def test_two_ranks_with_the_prior_on_train_and_answer_as_one(tiny, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    places = (str(tiny.corpus), str(tiny.encoder_run / "semantic_ids"), str(tiny.encoder_run))
    train_and_test_with_prior(alone, (*places, None), 48)
    torch.save((*places, str(alone / "trained.ckpt")), tmp_path / "input.pt")
    run_on_ranks(with_prior_on_ranks, tmp_path)
    expected = torch.load(alone / "weights-0.pt")
    assert any("prior" in name for name in expected)
    for rank in range(2):
        weights = torch.load(tmp_path / f"weights-{rank}.pt")
        for name, weight in expected.items():
            # scalars that were not calibrated are NaN
            torch.testing.assert_close(weights[name], weight, atol=2e-5, rtol=1e-4, equal_nan=True)
    for name in ("predictions.parquet", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
