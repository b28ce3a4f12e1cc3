"""A quantizer's run through the command line: from an encoder run, and on to a generator."""

from pathlib import Path

import pytest
import yaml

from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import arguments_from_run
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from tests.tiny import TRAINER, sidrec, write_yaml

CONFIG = Path(__file__).parents[3] / "configs" / "rq_vae.yaml"


def tiny_settings():
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"]["init_args"]["method"]["init_args"] = {
        "codebook_sizes": [8, 8],
        "hidden_sizes": [8],
        "latent_dim": 4,
    }
    settings["data"]["init_args"] = {"batch_size": 20, "pairs_per_batch": 8}
    settings["model"]["init_args"]["collaborative_weight"] = 0.1
    callbacks = settings["trainer"]["callbacks"]
    settings["trainer"] |= {k: v for k, v in TRAINER.items() if k != "val_check_interval"}
    return settings | {"trainer": settings["trainer"] | {"callbacks": callbacks, "max_steps": 6}}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantizer")
    config = write_yaml(folder / "rq_vae.yaml", tiny_settings())
    arguments = ("fit", "--config", config, "--from", tiny.encoder_run, "--run_dir", folder / "run")
    assert sidrec(*arguments) == 0
    return arguments, RunDirectory(folder / "run")


def test_the_run_ends_with_semantic_ids_of_its_vectors(tiny, run):
    made = SemanticIdBundle.load(run[1].semantic_ids)
    before = SemanticIdBundle.load(RunDirectory(tiny.encoder_run).semantic_ids)
    assert made.quantizer["name"] == "rq_vae"
    assert made.quantizer["num_steps"] == 6
    assert made.embeddings.vectors.equal(before.embeddings.vectors)
    assert made.item_ids == before.item_ids
    assert (run[1].stage(), run[1].state()) == ("quantizer", "finished")
    fitted = load_quantizer("rq_vae", made.codebooks)
    first = fitted.encode(made.embeddings.vectors)[:, 0]
    moved = made.quality["ids/prefix_moved_fraction"]
    assert (first != made.table.codes[:, 0]).double().mean() <= moved


def test_the_same_command_again_has_nothing_to_do(run, capsys):
    assert sidrec(*run[0]) == 0
    assert "already finished" in capsys.readouterr().err


def test_a_generator_finds_ids_and_encoder_behind_the_run(tiny, run, tmp_path):
    arguments = arguments_from_run("fit", ["--from", str(run[1].root)])
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given == {
        "--data.corpus": str(tiny.corpus),
        "--model.semantic_ids": str(run[1].semantic_ids),
        "--model.encoder_run": str(tiny.encoder_run),
    }
    fit = ("fit", "--config", tiny.generator_config, "--from", run[1].root)
    assert sidrec(*fit, "--run_dir", tmp_path / "gen", "--trainer.max_steps", 1) == 0


def test_the_encoders_callback_trains_one_when_the_encoder_has_finished(tiny, tmp_path):
    ids = yaml.safe_load((CONFIG.parent / "ids" / "rq_vae.yaml").read_text())
    small = {"codebook_sizes": [8, 8], "hidden_sizes": [8], "latent_dim": 4}
    ids["quantizer"]["init_args"] |= {"num_steps": 3, "batch_size": 20}
    ids["quantizer"]["init_args"]["method"]["init_args"] = small
    settings = yaml.safe_load(tiny.encoder_config.read_text())
    (callback,) = settings["trainer"]["callbacks"]
    callback["init_args"]["quantizer"] = ids["quantizer"]
    config = write_yaml(tmp_path / "encoder.yaml", settings)
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "run") == 0
    made = SemanticIdBundle.load(tmp_path / "run" / "semantic_ids")
    assert made.quantizer["name"] == "rq_vae"
    assert RunDirectory(tmp_path / "run").state() == "finished"
