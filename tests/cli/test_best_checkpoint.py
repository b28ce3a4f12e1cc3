"""Choice of the best checkpoint by any logged metric, and early stopping over a resume."""

import csv

import pytest
import torch
import yaml

from sidrec.runs.directory import RunDirectory
from tests.tiny import TRAINER, sidrec, write_yaml

STOPS = "--trainer.callbacks+=tests.stops.StopAt"


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def sasrec_config(tiny, folder, **best):
    """Return a file of six epochs of SASRec that stop early, since no metric rises by 10."""
    stop = {"monitor": "val/recommendation/ndcg@10", "mode": "max", "patience": 2, "min_delta": 10}
    settings = {
        "seed_everything": 1,
        "best": best,
        "model": {"class_path": "sidrec.SasRec", "init_args": {"dim": 8, "num_blocks": 1}},
        "data": {
            "class_path": "sidrec.WindowDataModule",
            "init_args": {"corpus": str(tiny.corpus), "batch_size": 16},
        },
        "trainer": TRAINER
        | {"max_steps": -1, "max_epochs": 6, "val_check_interval": None}
        | {
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                    "init_args": stop,
                }
            ]
        },
    }
    return write_yaml(folder / "sasrec.yaml", settings)


@pytest.mark.usefixtures("_stops")
def test_early_stopping_from_yaml_counts_on_after_a_resume(tiny, tmp_path, capsys):
    config = sasrec_config(tiny, tmp_path, monitor="val/recommendation/ndcg@10")
    alone, again = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "again")
    assert sidrec("fit", "--config", config, "--run_dir", alone.root) == 0
    whole = torch.load(alone.last_checkpoint, weights_only=True)
    assert alone.state() == "finished"
    assert (
        whole["epoch"] == 3
    )  # epochs done: the first validation is the best, two more do not beat it
    per_epoch = whole["global_step"] // 3
    stop = (STOPS, "--trainer.callbacks.reason=person")
    at = f"--trainer.callbacks.step={2 * per_epoch + 1}"  # one validation in vain so far
    assert sidrec("fit", "--config", config, "--run_dir", again.root, *stop, at) == 130
    assert sidrec("fit", "--config", config, "--run_dir", again.root) == 0
    found = torch.load(again.last_checkpoint, weights_only=True)
    assert found["global_step"] == whole["global_step"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    capsys.readouterr()
    assert sidrec("fit", "--config", config, "--run_dir", alone.root) == 0
    assert last_line(capsys) == f"already finished: {alone.root}"


def test_the_metric_that_chooses_the_checkpoint_is_a_setting(tiny, tmp_path, capsys):
    config = sasrec_config(tiny, tmp_path, monitor="val/recommendation/mrr@30", mode="min")
    run = RunDirectory(tmp_path / "run")
    fit = ("fit", "--config", config, "--run_dir", run.root)
    assert sidrec(*fit) == 0
    state = torch.load(run.best_checkpoint, weights_only=True)["callbacks"]
    (best,) = (one for name, one in state.items() if name.startswith("ModelCheckpoint"))
    assert best["monitor"] == "val/recommendation/mrr@30"
    with (run.logs / "version_0" / "metrics.csv").open() as file:
        rows = [row["val/recommendation/mrr@30"] for row in csv.DictReader(file)]
    assert best["best_model_score"].item() == pytest.approx(min(float(row) for row in rows if row))
    assert yaml.safe_load(run.config.read_text())["best"]["mode"] == "min"
    capsys.readouterr()
    assert sidrec(*fit, "--best.mode", "max", "--trainer.max_epochs", "9") == 2
    assert "best.mode: given max, in run min" in last_line(capsys)


def test_a_metric_that_nobody_logs_is_one_line(tiny, tmp_path, capsys):
    config = sasrec_config(tiny, tmp_path, monitor="val/search/recall@10")
    assert sidrec("fit", "--config", config, "--run_dir", tmp_path / "run") == 2
    assert "val/search/recall@10" in last_line(capsys)
