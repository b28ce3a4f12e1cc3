"""A causal generator trained by Lightning: exact resume, its checkpoint alone, its prior."""

import json

import polars as pl
import pytest
import torch

import sidrec
from sidrec.errors import ConfigError
from sidrec.generator.model.causal.causal_generator import CausalGenerator
from sidrec.generator.model.causal.causal_settings import CausalLmSettings, CausalShape
from sidrec.generator.model.generator_settings import T5Settings
from sidrec.generator.retrieval.appended_items import with_appended_items
from sidrec.generator.retrieval.retriever import Retriever
from sidrec.generator.scorers.prior_settings import PriorSettings
from sidrec.generator.training.load_generator import TrainedGenerator
from tests.generator.trained import make, train, trainer_for

SHAPE = CausalShape(
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)
CAUSAL = {
    "t5": T5Settings(),
    "causal_lm": CausalLmSettings(shape=SHAPE, text_vocabulary_size=120, all_positions=True),
    "prior": PriorSettings(search=("lexical",), recommendation=("next_item", "popularity")),
}
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)  # uncalibrated scalars are NaN
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def trained(corpus, semantic_ids, tmp_path_factory):
    """Six steps, with a checkpoint after every third one."""
    folder = tmp_path_factory.mktemp("causal")
    settings = {"model": CAUSAL, "max_steps": 6, "max_epochs": 1}
    trainer, model = train(str(corpus.folder), semantic_ids, folder, every=3, **settings)
    return trainer, model, folder


def test_interrupted_and_resumed_equals_undisturbed(corpus, semantic_ids, tmp_path, trained):
    settings = {"model": CAUSAL, "max_steps": 6, "max_epochs": 1}
    arguments = (str(corpus.folder), semantic_ids, tmp_path)
    train(*arguments, every=3, stop=3, **settings)
    trainer, model = train(*arguments, resume=str(tmp_path / "step=3.ckpt"), **settings)
    assert trainer.global_step == 6
    assert isinstance(model.model, CausalGenerator)
    assert same_weights(model, trained[1])


def test_training_without_the_prior_fits_one_next_item_model(trained):
    names = [name for name, _ in trained[1].model.prior.named_buffers()]
    assert "scorers.recommendation_next_item.rows_0" in names
    assert "scorers.recommendation_next_item.rows_1" not in names


def test_a_checkpoint_alone_is_the_trained_model(trained, monkeypatch):
    def unreachable(*_, **__):
        raise AssertionError("a stored generator needs neither hub nor corpus texts")

    monkeypatch.setattr("sidrec.generator.model.factory.train_tokenizer", unreachable)
    loaded = sidrec.JointGenerator.load_from_checkpoint(trained[2] / "step=6.ckpt")
    assert same_weights(loaded, trained[1])
    assert loaded.causal_lm == CAUSAL["causal_lm"]
    assert loaded.model.training_options() == {"input_dropout": 0.1, "all_positions": True}
    assert loaded.model.t5.config.to_dict() == trained[1].model.t5.config.to_dict()


def test_it_is_calibrated_tested_and_retrieves(corpus, semantic_ids, tmp_path, trained):
    model, data = make(str(corpus.folder), semantic_ids, model=CAUSAL)
    trainer = trainer_for(tmp_path, limit_val_batches=1.0)
    checkpoint = {"ckpt_path": str(trained[2] / "step=6.ckpt"), "weights_only": True}
    trainer.validate(model, datamodule=data, verbose=False, **checkpoint)
    assert all(model.model.prior.is_calibrated(task) for task in ("search", "recommendation"))
    trainer.test(model, datamodule=data, verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["decoding/valid_fraction"] == 1.0
    assert metrics["recommendation/has_prior"] == 1
    own = TrainedGenerator(model.model, model.ids, model.search.num_beams, exclude_history=True)
    retriever = Retriever(
        with_appended_items(own, model.ids),  # none: the same answers from a generator of its own
        device=torch.device("cpu"),
        bf16=False,
        max_history_items=5,
        exclude_history=True,
    )
    rows = pl.read_parquet(tmp_path / "predictions.parquet").iter_rows(named=True)
    stored = {(row["task"], row["request_id"]): row["items"] for row in rows}
    assert isinstance(retriever.generator.model, CausalGenerator)
    asked = [request for requests in data.requests("test") for request in requests[:3]]
    for request, answer in zip(asked, retriever.answer(asked, top_k=10), strict=True):
        expected = [model.ids.item_ids[i] for i in stored[request.task, request.request_id]]
        assert [item.item_id for item in answer] == expected


def test_t5_and_causal_lm_together_are_refused():
    settings = {"t5": T5Settings(torch_compile=True), "causal_lm": CausalLmSettings()}
    with pytest.raises(ConfigError, match="both given"):
        sidrec.JointGenerator("ids", "encoder", **settings)
