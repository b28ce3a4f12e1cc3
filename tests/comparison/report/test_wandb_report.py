"""W&B gets one run with tables and plots; without it, or when it fails, a line is all there is."""

import json
import sys

import pytest

from sidrec.comparison.plan.comparison_settings import WandbSettings
from sidrec.comparison.report.markdown import main_table
from sidrec.comparison.report.wandb_report import log_report
from sidrec.types import TASKS
from tests.wandb_file import read_offline_run

OFFLINE = WandbSettings(project="tiny", offline=True)
FIGURE = {"mean": 0.5, "deviation": None, "values": [0.5], "interval": [0.4, 0.6]}
REPORT = {
    "title": "tiny",
    "hypervolume": 0.25,
    "corpus_fingerprint": "abc",
    "num_requests": {"search": 3, "recommendation": 4},
    "settings": {"reference": "multitask", "family_error": 0.05, "interval": 0.95},
    "ablation": ["multitask", "random"],
    "systems": [
        {
            "name": name,
            "kind": "strategy",
            "figures": {f"{task}/recall@30": FIGURE for task in TASKS},
            "tests": {},
            "harmonic_mean": {"mean": 0.5, "deviation": None},
            "on_front": True,
            "front_share": 1.0,
            "seeds": [1],
            "missing": {},
            "ids": {"ids/collision_rate_before": 0.2, "ids/collision_rate": 0.0},
            "usage": [[3, 1], [2, 2]],
            "curve": {"steps": [10, 20], "recalls": {task: [0.1, 0.2] for task in TASKS}},
        }
        for name in ("multitask", "random")
    ],
}


def test_without_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    log_report(REPORT, OFFLINE, tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("not logged to Weights & Biases: ")
    assert said.endswith("the report's files are complete\n")


def test_a_failure_inside_is_said(tmp_path, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", unreachable)
    log_report(REPORT, OFFLINE, tmp_path)
    assert "Weights & Biases: no route to host; the report's" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_offline_run(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_report(REPORT, OFFLINE, tmp_path)
    wandb.teardown()  # closes the file
    assert "not logged" not in capsys.readouterr().err
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    plots = ("pareto", "quantizers", "usage", "collisions", "curves")
    media = {file.name.split("_")[0]: file for file in run.rglob("media/**/*") if file.is_file()}
    assert {"systems", "tests", *plots} == set(media)
    assert all(media[name].read_bytes().startswith(b"\x89PNG") for name in plots)
    headings, rows = main_table(REPORT)
    table = json.loads(media["systems"].read_text())
    assert (table["columns"], table["data"]) == (headings, rows)
    found = read_offline_run(run)
    logged = {
        key.split("/_type")[0]: value for row in found["history"] for key, value in row.items()
    }
    assert {"systems", "tests", *plots} <= set(logged)
    assert (logged["hypervolume"], logged["random/search/recall@30"]) == (0.25, 0.5)
    assert found["config"]["corpus_fingerprint"] == "abc"
    assert not list(tmp_path.glob("*.png"))
