"""The generator trained by Lightning: exact resume, ranks, refusals, loading."""

import json
import math
from dataclasses import replace

import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError, DataError, RunError
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.generator.scorers.next_item import NextItemScorer
from sidrec.generator.scorers.prior_settings import NextItemSettings, PriorSettings
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.generator.training.module import JointGenerator
from tests.generator.made import make_bundle
from tests.generator.trained import MODEL, equal, make, train, trainer_for
from tests.settings import made

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


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


def test_a_checkpoint_answers_in_the_mode_that_is_asked_for(semantic_ids, undisturbed):
    file = next(undisturbed[2].glob("*.ckpt"))
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    older = {"semantic_ids": semantic_ids, **MODEL}  # from before there were modes
    for settings, expected in ((older, "beam"), (older | {"decoding": "exact"}, "exact")):
        loaded = made(JointGenerator, **settings)
        loaded.on_load_checkpoint(checkpoint)
        assert loaded.model.decoding.mode == expected


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
    model.eval()
    losses = [found[f"val/{task}/loss"] for task in ("search", "recommendation")]
    assert found["val/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    for loss, loader in zip(losses, data.val_dataloader(), strict=True):
        with torch.no_grad():
            likelihoods = torch.cat([model.model.log_likelihood(batch) for batch in loader])
        assert loss == pytest.approx(-likelihoods.nanmean().item(), rel=1e-4)
    assert not any("sid" in key or "head" in key for key in found)


@pytest.mark.parametrize(
    ("off", "task"),
    [("recommendation_share", "search"), ("search_share", "recommendation")],
)
def test_a_task_without_a_share_chooses_no_checkpoint(corpus, semantic_ids, tmp_path, off, task):
    settings = {"data": {off: 0.0}, "max_steps": 2, "max_epochs": 1, "limit_val_batches": 1.0}
    trainer, model = train(str(corpus.folder), semantic_ids, tmp_path, **settings)
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)
    found = {key: value.item() for key, value in trainer.callback_metrics.items()}
    recalls = [found[f"val/{one}/recall@30"] for one in ("search", "recommendation")]
    own = found[f"val/{task}/recall@30"]
    assert recalls[0] != recalls[1]  # else the mean over both would be the same
    assert found["val/recall_harmonic_mean"] == pytest.approx(own)


def test_a_checkpoint_alone_answers_as_the_trained_model_did(
    corpus, semantic_ids, tmp_path, undisturbed, monkeypatch
):
    _, expected, folder = undisturbed
    newest = max(folder.glob("*.ckpt"), key=lambda file: int(file.stem.split("=")[1]))

    def unreachable(*_, **__):
        raise AssertionError("a stored generator needs neither hub nor corpus texts")

    monkeypatch.setattr("sidrec.generator.model.factory.train_tokenizer", unreachable)
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


def test_metrics_count_the_lists_that_retrieve_returns(corpus, semantic_ids, tmp_path, undisturbed):
    meeting = {"decoding": "diverse", "num_groups": 10}  # of one beam each, on the same Semantic ID
    model, data = make(str(corpus.folder), semantic_ids, model=meeting)
    checkpoint = str(undisturbed[2] / "step=5.ckpt")
    trainer_for(tmp_path).test(
        model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["decoding/list_length"] == 10
    assert metrics["decoding/found_fraction"] == pytest.approx(0.1)
    assert metrics["decoding/valid_fraction"] == 1.0
    rows = pl.read_parquet(tmp_path / "predictions.parquet").iter_rows(named=True)
    stored = {(row["task"], row["request_id"]): row for row in rows}
    trained = TrainedGenerator(model.model, model.ids, model.search.num_beams, True)
    retriever = Retriever(
        trained, device=torch.device("cpu"), bf16=False, max_history_items=5, exclude_history=True
    )
    asked = [request for requests in data.requests("test") for request in requests]
    for request, answer in zip(asked, retriever.answer(asked, top_k=10), strict=True):
        row = stored[request.task, request.request_id]
        assert [item.item_id for item in answer] == [model.ids.item_ids[i] for i in row["items"]]
        assert [item.score is None for item in answer] == [s == -math.inf for s in row["scores"]]


def test_semantic_ids_of_another_training_are_refused(corpus, semantic_ids, tmp_path, undisturbed):
    make_bundle(corpus, seed=1).save(tmp_path / "other")
    model, data = make(str(corpus.folder), str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"the generator was trained on \w{12}; give those"):
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
        ({"num_beams": 3}, {}, r"num_beams \(3\) must be at least top_k \(10\)"),
        ({"decoding": "diverse", "num_groups": 4}, {}, r"num_groups \(4\) must divide num_beams"),
        ({"num_groups": 5}, {}, r"need decoding: diverse, got 'beam'"),
        ({"prior": PriorSettings()}, {}, r"names 'dense', which needs model\.inputs\.text_input"),
        ({"text_input": "encoder_states"}, {}, r"needs model\.encoder_run; give --from RUN"),
        (
            {"text_input": "encoder_states", "encoder_run": "runs/enc"},
            {"indexing_text": "words"},
            r"words needs model\.inputs\.text_input tokens or tokens_and_states",
        ),
        ({}, {"max_history_items": 9}, r"data\.histories\.max_history_items \(9\) exceeds"),
    ],
)
def test_refusals(corpus, semantic_ids, tmp_path, model, data, message):
    with pytest.raises(ConfigError, match=message):
        train(str(corpus.folder), semantic_ids, tmp_path, model=model, data=data)


def test_buffers_that_never_change_are_not_sent_by_ddp():
    model = made(JointGenerator, semantic_ids="", **MODEL)
    assert "model.embedder.item_vectors" in model._ddp_params_and_buffers_to_ignore


WORDS = PriorSettings(search=("lexical",), next_item=NextItemSettings(num_folds=2, ridge=1.0))


def test_a_prior_is_trained_calibrated_stored_and_reported(corpus, semantic_ids, tmp_path, capsys):
    settings = {"model": {"prior": WORDS}, "max_steps": 4, "limit_val_batches": 1.0}
    trainer, trained = train(str(corpus.folder), semantic_ids, tmp_path, every=4, **settings)
    trainer.validate(trained, datamodule=trainer.datamodule, verbose=False)
    prior = trained.model.prior
    start = torch.tensor([NextItemScorer.initial_weight]).log()
    assert abs(prior.log_weights["recommendation"][1].detach() - start) > 1e-4
    assert prior.is_calibrated("search")
    trainer.save_checkpoint(tmp_path / "calibrated.ckpt")
    model, data = make(str(corpus.folder), semantic_ids, model={"prior": WORDS})
    trainer_for(tmp_path).test(
        model,
        datamodule=data,
        ckpt_path=str(tmp_path / "calibrated.ckpt"),
        weights_only=True,
        verbose=False,
    )
    stored = model.model.prior.eval()
    assert torch.equal(stored.weights("search"), prior.eval().weights("search"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for task in ("search", "recommendation"):
        assert metrics[f"{task}/has_prior"] == 1
        assert metrics[f"{task}/t5_factor"] == pytest.approx(stored.t5_factor(task))
        for alone in ("prior", "t5"):
            for metric in ("recall@5", "recall@10", "recall@30", "ndcg@5", "ndcg@10"):
                assert 0 <= metrics[f"{task}/{alone}_{metric}"] <= 1
        assert math.isfinite(metrics[f"{task}/t5_gain_nats"])
    if stored.t5_factor("search") == 0:
        assert metrics["search/t5_gain_nats"] == pytest.approx(0, abs=1e-5)
    answering = TrainedGenerator(
        model.model, model.ids, model.search.num_beams, exclude_history=True
    )
    retriever = Retriever(
        answering, device=torch.device("cpu"), bf16=False, max_history_items=5, exclude_history=True
    )
    asked = list(data.requests("test")[1][:3])
    rows = pl.read_parquet(tmp_path / "predictions.parquet").iter_rows(named=True)
    stored_rows = {(row["task"], row["request_id"]): row["items"] for row in rows}
    for request, answer in zip(asked, retriever.answer(asked, top_k=10), strict=True):
        expected = [model.ids.item_ids[i] for i in stored_rows[request.task, request.request_id]]
        assert [item.item_id for item in answer] == expected


@pytest.mark.parametrize("off", [{"search": ()}, {"recommendation": ()}, "search_share"])
def test_a_task_without_scorers_is_answered_by_t5_alone(corpus, semantic_ids, tmp_path, off):
    by_share = off == "search_share"
    settings = {
        "model": {"prior": WORDS if by_share else replace(WORDS, **off)},
        "data": {off: 0.0} if by_share else {},
        "max_steps": 1,
        "limit_val_batches": 1.0,
    }
    trainer, model = train(str(corpus.folder), semantic_ids, tmp_path, **settings)
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)
    trainer.test(model, datamodule=trainer.datamodule, verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    alone = "search" if by_share or "search" in off else "recommendation"
    assert metrics[f"{alone}/has_prior"] == 0
    assert f"{alone}/t5_gain_nats" not in metrics
    other = "recommendation" if alone == "search" else "search"
    assert metrics[f"{other}/has_prior"] == 1


def test_a_prior_without_validation_requests_says_so(corpus, semantic_ids, tmp_path, capsys):
    settings = {"model": {"prior": WORDS}, "max_steps": 1}
    train(str(corpus.folder), semantic_ids, tmp_path, **settings)
    assert "search: the prior was not calibrated" in capsys.readouterr().err


def test_scorers_of_another_corpus_are_refused(corpus, semantic_ids, tmp_path):
    settings = {"model": {"prior": WORDS}, "max_steps": 1}
    trainer, _ = train(str(corpus.folder), semantic_ids, tmp_path, **settings)
    file = tmp_path / "foreign.ckpt"
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["generator"]["prior"]["corpus_fingerprint"] = "f" * 64
    torch.save(checkpoint, file)
    model, data = make(str(corpus.folder), semantic_ids, model={"prior": WORDS})
    with pytest.raises(DataError, match=r"scorers were made from corpus f{12}, but its Semantic"):
        trainer_for(tmp_path).test(model, datamodule=data, ckpt_path=str(file), weights_only=True)


def test_dense_search_needs_the_bi_encoder():
    with pytest.raises(ConfigError, match=r"names 'dense', which needs model.inputs.text_input"):
        made(JointGenerator, semantic_ids="", **MODEL | {"prior": PriorSettings()})
