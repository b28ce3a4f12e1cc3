import json
import subprocess

import pytest

from sidrec.errors import DataError, RunError
from sidrec.runs.directory import RunDirectory, _git_revision


def test_facts_are_merged_and_versions_are_of_now(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert run.state() == "new"
    run.write_manifest(state="running", stage="encoder", seed=1)
    run.write_manifest(state="finished")
    manifest = json.loads(run.manifest.read_text())
    assert manifest.items() >= {"stage": "encoder", "seed": 1, "state": "finished"}.items()
    assert {"python", "torch", "lightning"} <= manifest["versions"].keys()
    assert (run.state(), run.stage()) == ("finished", "encoder")


def test_best_is_read_before_last(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_manifest(state="finished")
    with pytest.raises(RunError, match="checkpoints is empty"):
        run.finished_checkpoint()
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    assert run.finished_checkpoint() == run.last_checkpoint
    run.best_checkpoint.touch()
    assert run.finished_checkpoint() == run.best_checkpoint


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "preempted"])
def test_an_unfinished_run_is_refused(tmp_path, state):
    run = RunDirectory(tmp_path)
    run.write_manifest(state=state)
    with pytest.raises(RunError, match=f"not a finished run .state '{state}'.; run the same"):
        run.finished_checkpoint()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no manifest\.json"):
        RunDirectory(tmp_path).finished_checkpoint()
    with pytest.raises(RunError, match="does not exist; give --from"):
        RunDirectory(tmp_path / "gone").finished_checkpoint()
    (tmp_path / "manifest.json").write_text('{"state": ')
    with pytest.raises(DataError, match=r"manifest\.json is not valid JSON"):
        RunDirectory(tmp_path).finished_checkpoint()


def test_a_slow_git_costs_the_revision_and_not_the_run(tmp_path, monkeypatch):
    def slow(command, **how):
        raise subprocess.TimeoutExpired(command, how["timeout"])

    monkeypatch.setattr("subprocess.run", slow)
    monkeypatch.setattr("sidrec.runs.directory._git_revision", _git_revision.__wrapped__)
    run = RunDirectory(tmp_path)
    run.write_manifest(state="running")
    assert json.loads(run.manifest.read_text())["git_revision"] is None
