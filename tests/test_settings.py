"""Settings: ranges, and defaults equal to the flagship of 0.1."""

from dataclasses import FrozenInstanceError

import pytest

import sidrec
from sidrec.encoder.encoder_settings import LossSettings
from sidrec.errors import ConfigError
from sidrec.generator.model.generator_settings import SearchSettings
from sidrec.settings import as_plain
from sidrec.training.optimizer import OptimizerSettings
from tests.cli.test_configs import CONFIGS, ENCODER, FROM_RUN, GENERATOR, printed

FLAGSHIP = {  # every value of configs/multitask.yaml and configs/generator.yaml of version 0.1
    "encoder": {
        "tower.encoder": "sentence-transformers/all-mpnet-base-v2",
        "tower.revision": None,
        "tower.dropout": None,
        "tower.pooling": None,
        "tower.normalize": None,
        "tower.query_prompt": None,
        "tower.item_prompt": None,
        "tower.length_groups": 4,
        "tower.grad_cache_chunk": None,
        "tower.torch_compile": False,
        "tower.activation_checkpointing": False,
        "tower.lora": None,
        "loss.temperature": 0.05,
        "loss.query_item_weight": 1.0,
        "loss.item_item_weight": 1.0,
        "loss.symmetric": False,
        "loss.logq_correction": ["recommendation"],
        "optimizer.learning_rate": 2e-5,
        "optimizer.weight_decay": 0.01,
        "optimizer.warmup_fraction": 0.1,
        "optimizer.decay": "linear",
        "optimizer.skip_bad_losses": 0,
        "validation.history_items": 5,
        "validation.encode_batch_size": 256,
    },
    "pairs": {
        "corpus": "corpora/movies",
        "tokens.encoder": "sentence-transformers/all-mpnet-base-v2",
        "tokens.revision": None,
        "tokens.query_prompt": None,
        "tokens.item_prompt": None,
        "tokens.max_query_tokens": 32,
        "tokens.max_item_tokens": 128,
        "tokens.cache": None,
        "tasks.query_item_share": 1.0,
        "tasks.item_item_share": 1.0,
        "tasks.query_rows": "query",
        "item_pairs.window_size": 5,
        "item_pairs.max_anchors_per_user": 100,
        "item_pairs.weighting": "uniform",
        "batch_size": 512,
        "seed": 1234,
        "num_workers": 0,
    },
    "generator": {
        "semantic_ids": "s",
        "encoder_run": "e",
        "t5.pretrained": None,
        "t5.revision": None,
        "t5.shape.d_model": 128,
        "t5.shape.d_kv": 64,
        "t5.shape.d_ff": 1024,
        "t5.shape.num_layers": 4,
        "t5.shape.num_decoder_layers": 4,
        "t5.shape.num_heads": 6,
        "t5.shape.dropout_rate": 0.1,
        "t5.shape.feed_forward_proj": "relu",
        "t5.shape.tie_word_embeddings": False,
        "t5.text_vocabulary_size": 4000,
        "causal_lm": None,
        "t5.codes_from_items": True,
        "t5.torch_compile": False,
        "t5.activation_checkpointing": False,
        "t5.lora": None,
        "inputs.search_prompt": "search: {query}",
        "inputs.recommendation_prompt": "recommend: {history}",
        "inputs.text_input": "encoder_states",
        "inputs.history_input": "items",
        "inputs.max_query_tokens": 32,
        "inputs.max_history_items": 30,
        "inputs.query_token_dropout": 0.1,
        "prior.search": ["dense", "lexical"],
        "prior.recommendation": ["dense", "next_item", "popularity"],
        "prior.learning_rate": 0.02,
        "prior.dropout": 0.0,
        "prior.calibration_floor": 0.0,
        "prior.dense_half_life_items": 3.0,
        "prior.next_item.half_life_items": 10.0,
        "prior.next_item.max_history_items": 30,
        "prior.next_item.ridge": 1000.0,
        "prior.next_item.num_folds": 4,
        "prior.next_item.max_dense_items": 30_000,
        "prior.next_item.rank": 512,
        "prior.max_exact_items": 1_000_000,
        "loss.label_smoothing": 0.0,
        "loss.search_weight": 1.0,
        "loss.recommendation_weight": 1.0,
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.01,
        "optimizer.warmup_fraction": 0.05,
        "optimizer.decay": "cosine",
        "optimizer.skip_bad_losses": 0,
        "search.num_beams": 60,
        "search.top_k": 30,
        "search.decoding": "beam",
        "search.num_groups": 1,
        "search.diversity_penalty": 0.0,
    },
    "examples": {
        "corpus": "c",
        "tasks.search_share": 0.5,
        "tasks.recommendation_share": 0.5,
        "tasks.indexing_share": 0.15,
        "tasks.indexing_text": "whole",
        "histories.max_history_items": 30,
        "histories.target_window": 1,
        "histories.history_dropout": 0.0,
        "histories.targets_per_user": 40,
        "evaluation.batch_size": 64,
        "evaluation.valid_requests": 500,
        "batch_size": 128,
        "bucket_batches": 20,
        "seed": 1234,
        "num_workers": 0,
    },
    "ids": {
        "codebook_sizes": [256, 256, 256],
        "num_iterations": 25,
        "tolerance": 7e-4,
        "num_redo": 1,
        "init": "greedy-mixed",
        "sample_rows_per_code": 32,
        "normalize_residuals": False,
        "seed": 1234,
        "shrink": False,
        "beam_width": 1,
        "num_refit_rounds": 3,
        "train_rows_per_code": 256,
        "backend": "torch",
    },
}


def leaves(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        elif value != {}:
            found[f"{prefix}{key}"] = value
    return found


@pytest.fixture(autouse=True)
def _clean_argv(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sidrec"])


def test_short_configurations_resolve_to_the_flagship(capsys):
    shown = printed(capsys, "--config", ENCODER)
    assert leaves(shown["model"]["init_args"]) == FLAGSHIP["encoder"]
    assert leaves(shown["data"]["init_args"]) == FLAGSHIP["pairs"]
    (callback,) = shown["trainer"]["callbacks"]
    assert callback["init_args"]["quantizer"]["init_args"] == FLAGSHIP["ids"]
    assert callback["init_args"]["policy"]["class_path"] == "sidrec.ReassignLastLevel"
    shown = printed(capsys, "--config", GENERATOR, *FROM_RUN)
    assert leaves(shown["model"]["init_args"]) == FLAGSHIP["generator"]
    assert leaves(shown["data"]["init_args"]) == FLAGSHIP["examples"]


def test_python_has_the_same_defaults():
    assert leaves(dict(sidrec.BiEncoder().hparams)) == FLAGSHIP["encoder"]
    model = sidrec.JointGenerator(semantic_ids="s", encoder_run="e")
    assert leaves(dict(model.hparams)) == FLAGSHIP["generator"]
    assert as_plain(sidrec.RqKMeans()) == FLAGSHIP["ids"]


@pytest.mark.parametrize("name", ["multitask.yaml", "generator.yaml"])
def test_main_configurations_fit_on_a_screen(name):
    assert len((CONFIGS / name).read_text().splitlines()) <= 30


def test_flags_reach_nested_settings(capsys):
    shown = printed(capsys, "--config", ENCODER, "--model.loss.temperature", "0.1")
    assert shown["model"]["init_args"]["loss"]["temperature"] == 0.1
    assert shown["model"]["init_args"]["loss"]["logq_correction"] == ["recommendation"]


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (OptimizerSettings, {"learning_rate": 0.0}, r"learning_rate is 0\.0, expected above 0"),
        (OptimizerSettings, {"warmup_fraction": 1.0}, "expected at least 0 and below 1"),
        (OptimizerSettings, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (OptimizerSettings, {"skip_bad_losses": -1}, "skip_bad_losses is -1"),
        (LossSettings, {"temperature": -1.0}, r"temperature is -1\.0"),
        (SearchSettings, {"num_beams": 3}, r"num_beams \(3\) must be at least"),
    ],
)
def test_values_out_of_range_are_refused(settings, values, message):
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        OptimizerSettings().learning_rate = 1.0
