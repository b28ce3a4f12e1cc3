"""Weights & Biases gets the whole story of a run, read back from its offline file."""

import importlib.util
import json
import math

import pytest
import yaml

from sidrec.runs.directory import RunDirectory
from sidrec.runs.tracking import Tracking
from tests.tiny import encoder_settings, sidrec, write_yaml
from tests.wandb_file import read_offline_run

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="the extra `wandb` is not installed"
)


@needs_wandb
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_offline_run_holds_the_whole_story(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    settings["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "tiny", "save_dir": str(tmp_path), "offline": True},
    }
    config, run = write_yaml(tmp_path / "config.yaml", settings), RunDirectory(tmp_path / "run")
    assert sidrec("fit", "--config", config, "--run_dir", run.root, "--upload", "true") == 0
    importlib.import_module("wandb").teardown()  # closes the file
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    found = read_offline_run(folder)

    manifest = json.loads(run.manifest.read_text())
    assert found["config"]["config"] == yaml.safe_load(run.config.read_text())
    provenance = found["config"]["provenance"]
    for key in ("corpus_fingerprint", "git_revision", "versions"):
        assert provenance[key] == manifest[key]
    logged = {key: value for row in found["history"] for key, value in row.items()}
    for key in ("optimizer/learning_rate", "optimizer/gradient_norm", "speed/examples_per_s"):
        assert sum(key in row for row in found["history"]) == settings["trainer"]["max_steps"]
        assert math.isfinite(logged[key])
        assert logged[key] >= 0
    assert logged["speed/examples_per_s"] > 0
    assert {"val/search/recall@10", "val/recommendation/recall@10"} <= logged.keys()
    assert any(key.startswith("ids/") for key in logged)
    assert found["summaries"]["val/*"] == ["max"]
    assert found["summaries"]["ids/*"] == ["last"]
    assert {kind for kind, _ in found["artifacts"]} >= {"configuration", "semantic_ids"}
    files = {entry.path for _, manifest in found["artifacts"] for entry in manifest.contents}
    assert {"config.yaml", "semantic_ids.json", "embeddings.safetensors"} <= files


def test_processor_time_goes_on_over_a_resume(tmp_path, monkeypatch):
    clock = iter([30.0, 5.0, 12.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    first, second = (Tracking(RunDirectory(tmp_path), {}) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"processor_s": 37.0}


def test_other_loggers_get_the_figures_too(tiny):
    (log,) = RunDirectory(tiny.encoder_run).logs.glob("version_0/metrics.csv")
    heading = log.read_text().splitlines()[0].split(",")
    assert {"optimizer/learning_rate", "optimizer/gradient_norm", "speed/examples_per_s"} <= set(
        heading
    )
    assert "speed/processor_s" in heading
    parameters = yaml.safe_load((log.parent / "hparams.yaml").read_text())
    assert parameters["config"]["model"]["class_path"] == "sidrec.BiEncoder"
    assert parameters["provenance"]["corpus_fingerprint"]
