"""The generator trained by Lightning: exact resume, ranks, refusals, loading."""

import json
import os

import lightning as L
import polars as pl
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.datamodule import GeneratorDataModule
from sidrec.generator.module import JointGenerator
from tests.generator.made import T5, make_bundle
from tests.generator.test_datamodule import SETTINGS
from tests.ranks import run_on_ranks

MODEL = {
    "t5": T5 | {"dropout_rate": 0.1},
    "text_vocabulary_size": 120,
    "text_input": "tokens",
    "history_input": "items",
    "search_prompt": "search: {query}",
    "recommendation_prompt": "recommend: {history}",
    "max_query_tokens": 8,
    "max_history_items": 5,
    "query_token_dropout": 0.1,
    "prior_scale": None,
    "prior_half_life_items": 3.0,
    "codes_from_items": True,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "decay": "cosine",
    "label_smoothing": 0.0,
    "search_weight": 1.0,
    "recommendation_weight": 0.5,
    "num_beams": 10,
    "top_k": 10,
}
DATA = SETTINGS | {"batch_size": 48, "valid_requests": 10, "history_dropout": 0.2}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Stop(L.Callback):
    """Break off like a crash, before the batch that follows so many steps."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.after:
            raise KeyError("power cut")


@pytest.fixture(scope="session")
def semantic_ids(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "semantic_ids"
    make_bundle(corpus).save(folder)
    return str(folder)


def make(corpus, semantic_ids, *, model=(), data=()):
    torch.manual_seed(1)
    return (
        JointGenerator(**{"semantic_ids": semantic_ids, **MODEL, **dict(model)}),
        GeneratorDataModule(**{"corpus": corpus, **DATA, **dict(data)}),
    )


def trainer_for(folder, **settings):
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


def train(corpus, semantic_ids, folder, *, every=None, stop=None, resume=None, **settings):
    """Train; return trainer and model. ``every``: checkpoint each so many steps."""
    model, data = make(
        corpus, semantic_ids, model=settings.pop("model", ()), data=settings.pop("data", ())
    )
    callbacks = [Stop(stop)] if stop else []
    if every:
        saved = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=every)
        callbacks = [saved, *callbacks]
    trainer = trainer_for(folder, callbacks=callbacks, enable_checkpointing=bool(every), **settings)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except KeyError:
        if not stop:
            raise
    return trainer, model


def equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def undisturbed(corpus, semantic_ids, tmp_path_factory):
    """Two epochs with a checkpoint after every fifth step."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer, model = train(str(corpus.folder), semantic_ids, folder, every=5)
    return trainer.global_step, model, folder


@pytest.mark.parametrize("where", ["first epoch", "second epoch"])
def test_interrupted_and_resumed_equals_undisturbed(
    corpus, semantic_ids, tmp_path, undisturbed, where
):
    steps, expected, _ = undisturbed
    after = 5 if where == "first epoch" else steps // 2 // 5 * 5 + 5
    assert after % (steps // 2)  # in the middle of an epoch
    arguments = (str(corpus.folder), semantic_ids, tmp_path)
    train(*arguments, every=5, stop=after)
    resumed = train(*arguments, every=5, resume=str(tmp_path / f"step={after}.ckpt"))
    assert resumed[0].global_step == steps
    assert equal(resumed[1], expected)


def test_validation_logs_both_tasks(corpus, semantic_ids, tmp_path):
    settings = {"max_steps": 2, "max_epochs": 1, "limit_val_batches": 1.0}
    trainer, _ = train(str(corpus.folder), semantic_ids, tmp_path, **settings)
    model, data = trainer.lightning_module, trainer.datamodule
    trainer.validate(model, datamodule=data, verbose=False)
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    a, b = (found[f"val/{task}/recall@30"] for task in ("search", "recommendation"))
    assert found["val/recall_harmonic_mean"] == pytest.approx(
        2 / (1 / max(a, 1e-9) + 1 / max(b, 1e-9)), rel=1e-4
    )
    assert not any("sid" in key or "head" in key for key in found)


def test_a_checkpoint_alone_answers_as_the_trained_model_did(
    corpus, semantic_ids, tmp_path, undisturbed, monkeypatch
):
    _, expected, folder = undisturbed
    newest = max(folder.glob("*.ckpt"), key=lambda file: int(file.stem.split("=")[1]))

    def unreachable(*_, **__):
        raise AssertionError("a stored generator needs neither hub nor corpus texts")

    monkeypatch.setattr("sidrec.generator.assembly.train_tokenizer", unreachable)
    model, data = make(str(corpus.folder), semantic_ids)
    trainer = trainer_for(tmp_path)
    trainer.test(model, datamodule=data, ckpt_path=str(newest), weights_only=True, verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["decoding/valid_fraction"] == 1.0
    assert metrics["ids/collision_rate"] == 0.0
    rows = pl.read_parquet(tmp_path / "predictions.parquet")
    num_requests = sum(len(requests) for requests in data.requests("test"))
    assert len(rows) == num_requests
    recall = [
        len(set(row["items"]) & set(row["relevant"])) / len(row["relevant"])
        for row in rows.iter_rows(named=True)
        if row["task"] == "search"
    ]
    assert metrics["search/recall@10"] == pytest.approx(sum(recall) / len(recall))
    answers = trainer.predict(model, datamodule=data)
    assert sum(len(batch) for loader in answers for batch in loader) == num_requests
    assert equal(model, expected) == (int(newest.stem.split("=")[1]) == undisturbed[0])


def on_ranks(rank, world_size, tmp_path):
    """Test the checkpoint, and take one training step whose gradient is kept."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29541",
        "TORCHELASTIC_RUN_ID": "test",
    }
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
    _, trained = train(
        corpus, semantic_ids, tmp_path, model=PLAIN, data={"batch_size": 24}, max_steps=6, **ddp
    )
    torch.save(trained.state_dict(), tmp_path / f"weights-{rank}.pt")


PLAIN = {"t5": T5, "query_token_dropout": 0.0, "learning_rate": 1e-3}  # dropout differs by rank


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


def test_semantic_ids_of_another_training_are_refused(corpus, semantic_ids, tmp_path, undisturbed):
    make_bundle(corpus, seed=1).save(tmp_path / "other")
    model, data = make(str(corpus.folder), str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"this generator was trained on \w{12}; give it those"):
        trainer_for(tmp_path).test(
            model, datamodule=data, ckpt_path=str(undisturbed[2] / "step=5.ckpt")
        )


def test_nan_is_refused_with_the_step(corpus, semantic_ids, tmp_path):
    message = r"loss is nan at epoch 0, step \d+ \(\w+\), for the batch with items '\w+', .*; lower"
    with pytest.raises(RunError, match=message) as caught:
        train(str(corpus.folder), semantic_ids, tmp_path, model={"learning_rate": 1e30})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"num_beams": 3}, {}, r"num_beams \(3\) must be at least model\.top_k \(10\)"),
        ({"text_input": "encoder_states"}, {}, r"needs model\.encoder_run; give --from RUN"),
        ({}, {"max_history_items": 9}, r"data\.max_history_items \(9\) exceeds"),
    ],
)
def test_refusals(corpus, semantic_ids, tmp_path, model, data, message):
    with pytest.raises(ConfigError, match=message):
        train(str(corpus.folder), semantic_ids, tmp_path, model=model, data=data)


def test_buffers_that_never_change_are_not_sent_by_ddp():
    model = JointGenerator(semantic_ids="", **MODEL)
    assert "model.embedder.item_vectors" in model._ddp_params_and_buffers_to_ignore
