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

OPTIMIZER = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_fraction": 0.0,
    "decay": "constant",
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
                "tower": {"encoder": str(encoder), "length_groups": 1, "dropout": 0.0},
                "loss": {"temperature": 0.1, "logq_correction": []},
                "optimizer": dict(OPTIMIZER),
                "validation": {"encode_batch_size": 32},
            },
        },
        "data": {
            "class_path": "sidrec.PairDataModule",
            "init_args": {
                "corpus": str(corpus),
                "tokens": {
                    "encoder": str(encoder),
                    "max_query_tokens": 16,
                    "max_item_tokens": 32,
                },
                "item_pairs": {"window_size": 3, "max_anchors_per_user": 10},
                "batch_size": 8,
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
                    "seed": 1,
                    "num_refit_rounds": 0,
                    "train_rows_per_code": None,
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
                "t5": {"shape": dict(T5), "text_vocabulary_size": 200},
                "inputs": {
                    "max_query_tokens": 16,
                    "max_history_items": 8,
                    "query_token_dropout": 0.0,
                },
                "optimizer": dict(OPTIMIZER),
                "search": {"num_beams": 10, "top_k": 10},
            },
        },
        "data": {
            "class_path": "sidrec.GeneratorDataModule",
            "init_args": {
                "tasks": {
                    "search_share": 1.0,
                    "recommendation_share": 1.0,
                    "indexing_share": 0.1,
                },
                "histories": {"max_history_items": 8, "targets_per_user": None},
                "evaluation": {"batch_size": 16, "valid_requests": 8},
                "batch_size": 8,
                "bucket_batches": 2,
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
