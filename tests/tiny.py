"""Both stages trained for a few steps through the command line: whole runs, small and real."""

import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml

from sidrec.cli.main import main
from tests.pairs.made import make_corpus, make_encoder

TRAINER = {
    "max_steps": 4,
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "val_check_interval": 4,
}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Tiny:
    """Folders and configuration files of one tiny pipeline."""

    corpus: Path
    encoder: Path
    encoder_config: Path
    encoder_run: Path
    generator_config: Path
    generator_run: Path


def sidrec(*arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    with mock.patch.object(sys, "argv", ["sidrec", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def encoder_settings(corpus: Path, encoder: Path) -> dict:
    return {
        "seed_everything": 1,
        "model": {
            "class_path": "sidrec.BiEncoder",
            "init_args": {
                "encoder": str(encoder),
                "temperature": 0.1,
                "learning_rate": 1e-3,
                "weight_decay": 0.0,
                "warmup_fraction": 0.0,
                "decay": "constant",
                "query_item_weight": 1.0,
                "item_item_weight": 1.0,
                "symmetric": False,
                "logq_correction": [],
                "grad_cache_chunk": None,
                "length_groups": 1,
                "dropout": 0.0,
                "history_items": 5,
                "encode_batch_size": 32,
            },
        },
        "data": {
            "class_path": "sidrec.PairDataModule",
            "init_args": {
                "corpus": str(corpus),
                "encoder": str(encoder),
                "batch_size": 8,
                "max_query_tokens": 16,
                "max_item_tokens": 32,
                "query_item_share": 1.0,
                "item_item_share": 1.0,
                "query_rows": "query",
                "window": 3,
                "cap": 10,
                "weighting": "uniform",
                "seed": 1,
            },
        },
        "trainer": TRAINER | {"callbacks": [_semantic_ids()]},
    }


def _semantic_ids() -> dict:
    return {
        "class_path": "sidrec.SemanticIdCallback",
        "init_args": {
            "quantizer": {
                "class_path": "sidrec.RqKMeans",
                "init_args": {
                    "codebook_sizes": [8, 8],
                    "num_iterations": 5,
                    "tolerance": 1e-4,
                    "num_redo": 1,
                    "init": "progressive",
                    "sample_rows_per_code": 256,
                    "normalize_residuals": False,
                    "seed": 1,
                    "shrink": False,
                },
            },
            "policy": {
                "class_path": "sidrec.ExtraLevel",
                "init_args": {"num_codes": 60},
            },
            "max_item_tokens": 32,
            "batch_size": 32,
        },
    }


def generator_settings() -> dict:
    return {
        "seed_everything": 1,
        "model": {
            "class_path": "sidrec.JointGenerator",
            "init_args": {
                "t5": T5,
                "text_vocabulary_size": 200,
                "text_input": "encoder_states",
                "history_input": "items",
                "search_prompt": "search: {query}",
                "recommendation_prompt": "recommend: {history}",
                "max_query_tokens": 16,
                "max_history_items": 8,
                "query_token_dropout": 0.0,
                "prior_scale": 20.0,
                "prior_half_life_items": 3.0,
                "codes_from_items": True,
                "learning_rate": 1e-3,
                "weight_decay": 0.0,
                "warmup_fraction": 0.0,
                "decay": "constant",
                "label_smoothing": 0.0,
                "search_weight": 1.0,
                "recommendation_weight": 1.0,
                "num_beams": 10,
                "top_k": 10,
            },
        },
        "data": {
            "class_path": "sidrec.GeneratorDataModule",
            "init_args": {
                "batch_size": 8,
                "eval_batch_size": 16,
                "search_share": 1.0,
                "recommendation_share": 1.0,
                "indexing_share": 0.1,
                "max_history_items": 8,
                "target_window": 1,
                "history_dropout": 0.0,
                "pool_batches": 2,
                "valid_requests": 8,
                "seed": 1,
            },
        },
        "trainer": dict(TRAINER),
    }


def write_yaml(target: Path, settings: dict) -> Path:
    target.write_text(yaml.safe_dump(settings))
    return target


def make_tiny(folder: Path) -> Tiny:
    """Train both stages; about ten seconds."""
    corpus = make_corpus(folder / "corpus")
    encoder = make_encoder(folder / "encoder", corpus, dropout=0.0)
    tiny = Tiny(
        corpus=folder / "corpus",
        encoder=encoder,
        encoder_config=write_yaml(
            folder / "encoder.yaml", encoder_settings(folder / "corpus", encoder)
        ),
        encoder_run=folder / "runs" / "enc",
        generator_config=write_yaml(folder / "generator.yaml", generator_settings()),
        generator_run=folder / "runs" / "gen",
    )
    assert sidrec("fit", "--config", tiny.encoder_config, "--run_dir", tiny.encoder_run) == 0
    fit = ("fit", "--config", tiny.generator_config, "--from", tiny.encoder_run)
    assert sidrec(*fit, "--run_dir", tiny.generator_run) == 0
    return tiny
