"""The bi-encoder trained by Lightning: exact resume, refusals, loading."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from sidrec.encoder.load_encoder import load_encoder
from sidrec.encoder.module import BiEncoder
from sidrec.errors import ConfigError, RunError
from sidrec.pairs.datamodule import PairDataModule
from sidrec.runs.directory import RunDirectory
from tests.pairs.test_datamodule import SETTINGS
from tests.ranks import as_elastic, run_on_ranks
from tests.settings import made

DATA = SETTINGS | {"batch_size": 12}
MODEL = {
    "temperature": 0.1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "decay": "linear",
    "query_item_weight": 1.0,
    "item_item_weight": 0.5,
    "symmetric": False,
    "logq_correction": ("recommendation",),
    "grad_cache_chunk": None,
    "length_groups": 2,
    "dropout": 0.1,
    "history_items": 5,
    "encode_batch_size": 16,
}


class Stop(L.Callback):
    """Break off like a crash, before the batch that follows so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.after:
            raise KeyError("power cut")


class WatchWeights(L.Callback):
    """Say of every step whether it changed a weight."""

    def __init__(self):
        self.changed = []

    def on_train_batch_start(self, trainer, module, *_):
        self.before = [weight.detach().clone() for weight in module.parameters()]

    def on_train_batch_end(self, trainer, module, *_):
        pairs = zip(self.before, module.parameters(), strict=True)
        self.changed.append(not all(torch.equal(before, now) for before, now in pairs))


def train(corpus, encoder, *, folder=None, every=None, stop=None, resume=None, **settings):
    """Train 2 epochs; return the weights. ``every``: checkpoint each so many steps."""
    model = made(BiEncoder, **{"encoder": encoder, **MODEL, **settings.pop("model", {})})
    changes = settings.pop("data", {})
    data = made(PairDataModule, corpus=corpus, encoder=encoder, **{**DATA, **changes})
    callbacks = [*settings.pop("more_callbacks", []), *([Stop(stop)] if stop else [])]
    if every:
        callbacks.insert(
            0,
            ModelCheckpoint(
                folder, filename="{step}", save_top_k=-1, every_n_train_steps=every, monitor=None
            ),
        )
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": bool(every),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "callbacks": callbacks,
            **settings,
        }
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except KeyError:
        if not stop:
            raise
    return trainer, model


def equal(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture(scope="module")
def undisturbed(corpus, encoder):
    trainer, model = train(str(corpus.folder), encoder)
    return trainer.global_step, model


@pytest.mark.parametrize("where", ["first batch", "mid epoch", "epoch end", "second epoch"])
def test_interrupted_and_resumed_equals_undisturbed(corpus, encoder, tmp_path, undisturbed, where):
    steps, expected = undisturbed
    after = {
        "first batch": 1,
        "mid epoch": steps // 4,
        "epoch end": steps // 2,
        "second epoch": steps // 2 + 3,
    }[where]
    folder = str(corpus.folder)
    train(folder, encoder, folder=tmp_path, every=after, stop=after)
    checkpoint = str(tmp_path / f"step={after}.ckpt")
    trainer, model = train(folder, encoder, folder=tmp_path, every=after, resume=checkpoint)
    assert trainer.global_step == steps
    assert equal(model, expected)


def test_loader_processes_change_nothing_across_a_resume(corpus, encoder, tmp_path, undisturbed):
    steps, expected = undisturbed
    after, folder = steps // 4, str(corpus.folder)
    workers = {"data": {"num_workers": 1}}
    train(folder, encoder, folder=tmp_path, every=after, stop=after, **workers)
    checkpoint = str(tmp_path / f"step={after}.ckpt")
    _, model = train(folder, encoder, folder=tmp_path, every=after, resume=checkpoint, **workers)
    assert equal(model, expected)


def test_undisturbed_is_repeatable_and_seed_matters(corpus, encoder, undisturbed):
    assert equal(train(str(corpus.folder), encoder)[1], undisturbed[1])
    other = train(str(corpus.folder), encoder, data={"seed": 12})[1]
    assert not equal(other, undisturbed[1])


def test_grad_cache_trains_the_same(corpus, encoder):
    one_group = {"dropout": 0.0, "length_groups": 1}
    plain = train(str(corpus.folder), encoder, model=one_group, max_steps=5)[1]
    chunked = train(
        str(corpus.folder), encoder, model=one_group | {"grad_cache_chunk": 3}, max_steps=5
    )[1]
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(chunked.state_dict()[name], weight, atol=2e-4, rtol=1e-3)


def on_ranks(rank, world_size, tmp_path):
    del rank, world_size
    corpus, encoder, folder, stop, resume = torch.load(tmp_path / "input.pt")
    trainer, model = train(
        corpus,
        encoder,
        folder=folder,
        every=9,
        stop=stop,
        resume=resume,
        devices=2,
        strategy="ddp",
        data={"batch_size": 6},
        plugins=[TorchElasticEnvironment()],
    )
    torch.save(model.state_dict(), tmp_path / f"weights-{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_ranks_resume_exactly_and_see_the_same_batches(corpus, encoder, tmp_path):
    found = {}
    stops = {
        "whole": (None, None),
        "cut": (9, None),
        "resumed": (None, tmp_path / "cut/step=9.ckpt"),
    }
    for name, (stop, resume) in stops.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(
            (str(corpus.folder), encoder, str(folder), stop, resume and str(resume)),
            folder / "input.pt",
        )
        run_on_ranks(_with_environment, folder)
        found[name] = [torch.load(folder / f"weights-{rank}.pt") for rank in range(2)]
    for name, weight in found["whole"][0].items():
        assert torch.equal(weight, found["whole"][1][name])
        assert torch.equal(weight, found["resumed"][0][name])
        assert torch.equal(weight, found["resumed"][1][name])


def _with_environment(rank, world_size, tmp_path):
    as_elastic(rank, world_size, port=29511)
    on_ranks(rank, world_size, tmp_path)


def test_validation_logs_both_tasks(corpus, encoder):
    trainer, _ = train(
        str(corpus.folder), encoder, limit_val_batches=1, limit_train_batches=2, max_epochs=1
    )
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert {"train/search/loss", "train/recommendation/loss"} <= set(found)
    for task in ("search", "recommendation"):
        assert 0 <= found[f"val/{task}/recall@10"] <= found[f"val/{task}/recall@30"] <= 1
    a, b = (found[f"val/{task}/recall@30"] for task in ("search", "recommendation"))
    assert found["val/recall_harmonic_mean"] == pytest.approx(2 * a * b / (a + b), rel=1e-5)


def test_training_learns_both_tasks(corpus, encoder):
    settings = {"model": {"learning_rate": 5e-3, "dropout": 0.0}, "max_epochs": 6}
    trainer, model = train(str(corpus.folder), encoder, **settings)
    after = model.dense_recalls("valid")
    untrained = made(BiEncoder, encoder=encoder, **MODEL)
    untrained.configure_model()
    untrained.trainer = trainer
    before = untrained.dense_recalls("valid")
    for key in ("search/recall@10", "recommendation/recall@10"):
        assert after[key] > before[key] + 0.05


def test_nan_is_refused_with_the_step(corpus, encoder):
    message = r"loss is nan at epoch 0, step \d+ \(\w+\), for the batch with items '\w+', .*; lower"
    with pytest.raises(RunError, match=message) as caught:
        train(str(corpus.folder), encoder, model={"learning_rate": 1e30, "warmup_fraction": 0.0})
    assert "\n" not in str(caught.value)


def test_a_bad_batch_can_be_skipped_and_is_remembered(corpus, encoder, tmp_path, monkeypatch):
    bad = {3}
    honest = BiEncoder.embed

    def embed(self, tokens):
        found = honest(self, tokens)
        return found * float("nan") if self.trainer.global_step in bad else found

    monkeypatch.setattr(BiEncoder, "embed", embed)
    watch = WatchWeights()
    settings = {"model": {"skip_bad_losses": 1}, "max_steps": 5, "more_callbacks": [watch]}
    train(str(corpus.folder), encoder, folder=tmp_path, every=5, **settings)
    assert watch.changed == [True, True, True, False, True]
    stored = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    assert stored["num_skipped_losses"] == 1
    assert all(value.isfinite().all() for value in stored["state_dict"].values())
    bad.add(1)
    with pytest.raises(
        RunError, match=r"step 3 .*raise model\.optimizer\.skip_bad_losses .*\(now 1\)"
    ):
        train(str(corpus.folder), encoder, **settings)


def test_a_finished_run_loads_without_its_encoder(corpus, encoder, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    _, model = train(str(corpus.folder), encoder, folder=tmp_path / "saved", every=2, max_steps=2)
    Path(run.last_checkpoint).parent.mkdir(parents=True)
    (tmp_path / "saved" / "step=2.ckpt").rename(run.last_checkpoint)
    with pytest.raises(RunError, match="not a finished run"):
        load_encoder(run)
    run.write_manifest(state="finished", stage="encoder")

    def unreachable(*_, **__):
        raise AssertionError("asked for the pretrained encoder")

    monkeypatch.setattr("sidrec.encoder.tower.locate_encoder", lambda name: name)
    monkeypatch.setattr("sidrec.encoder.tower.load_tokenizer", unreachable)
    loaded = load_encoder(run)
    assert equal(loaded.tower, model.tower)
    assert not loaded.tower.training
    texts = corpus.item_texts()[:3]
    again = loaded.tower(loaded.tower.tokenize(texts, max_tokens=12, kind="item"))
    torch.testing.assert_close(
        again, model.eval().tower(model.tower.tokenize(texts, max_tokens=12, kind="item"))
    )
    torch.save({"hyper_parameters": {}, "global_step": 0}, run.last_checkpoint)
    with pytest.raises(RunError, match="is not a bi-encoder"):
        load_encoder(run)


def test_refusals(encoder, corpus):
    with pytest.raises(
        ConfigError, match=r"model\.tower\.encoder is 'other' but data\.tokens\.encoder is"
    ):
        train(str(corpus.folder), encoder, model={"encoder": "other"})
    with pytest.raises(ConfigError, match=r"query_prompt is 'for: ' but .* is None; give both"):
        train(str(corpus.folder), encoder, model={"query_prompt": "for: "})
    for changes, message in (
        ({"temperature": 0.0}, r"temperature is 0\.0, expected above 0"),
        ({"warmup_fraction": 1.0}, r"is 1\.0, expected at least 0 and below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(BiEncoder, **{"encoder": encoder, **MODEL, **changes})
