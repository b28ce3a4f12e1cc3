import json
import os
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from sidrec.doctor import checks as doctor
from sidrec.doctor import cluster
from sidrec.doctor.run_state import examine_run
from sidrec.runs.checkpoints import write_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.runs.lock import Owner
from tests.tiny import sidrec


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")


def found(what):
    return next(finding for finding in doctor.examine() if finding.what == what)


def test_this_machine_is_good_enough(capsys):
    assert sidrec("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines)
    whats = {finding.what for finding in doctor.examine()}
    assert {"torch", "lightning", "cpu", "working folder", "W&B", "Slurm", "hub"} <= whats


def test_a_missing_or_old_package_ends_with_1(monkeypatch, capsys):
    wanted = ["no-such-package>=2", "numpy<1", "rich", "faiss-cpu; extra == 'cpu'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    assert sidrec("doctor") == 1
    out = capsys.readouterr().out
    assert "missing -> pip install 'no-such-package>=2'" in out
    assert "-> pip install 'numpy<1'" in out
    assert out.count("problem") == 2


def test_another_version_than_the_tested_one_is_only_a_note(monkeypatch):
    monkeypatch.setitem(doctor.TESTED, "torch", "2.0.0")
    assert found("torch").verdict == "note"


def test_both_builds_of_faiss_are_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: True)
    (finding,) = doctor._faiss()
    assert finding.verdict == "problem"
    assert "uninstall both" in finding.advice
    monkeypatch.setattr(doctor, "_installed", lambda name: False)
    (finding,) = doctor._faiss()
    assert finding.verdict == "note"


def test_little_disk_is_said(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    finding = found("working folder")
    assert finding.verdict == "note"
    assert "1 GB free" in finding.found


def test_slurm_and_wandb_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "2 nodes, 4 tasks" in found("Slurm").found
    assert found("W&B").found.endswith("offline") or "not installed" in found("W&B").found


def test_a_silent_hub_costs_three_seconds_at_most(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    finding = doctor._Hub().finding()
    assert time.monotonic() - started < 4
    assert (finding.verdict, finding.what) == ("note", "hub")


def test_arguments_are_refused(capsys):
    assert sidrec("doctor", "--all") == 2
    assert "takes --run_dir RUN or --corpus DIR or nothing, got --all" in capsys.readouterr().err
    assert sidrec("doctor", "--help") == 0
    assert "usage: sidrec doctor" in capsys.readouterr().out


def test_a_silent_wandb_costs_three_seconds_at_most_and_no_key_is_shown(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "5ec3e7")
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "version", lambda name: "1.0")
    started = time.monotonic()
    finding = cluster.WandB().finding()
    assert time.monotonic() - started < 4
    assert finding.verdict == "note"
    assert "WANDB_MODE=offline" in finding.advice
    assert "5ec3e7" not in "".join(finding)


def test_a_job_without_srun_is_noticed(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert cluster.slurm().advice == "this process was not started by srun"


def test_little_shared_memory_is_said(monkeypatch):
    monkeypatch.setattr(cluster.shutil, "disk_usage", lambda path: SimpleNamespace(free=64e6))
    (finding,) = cluster.shared_memory()
    assert (finding.verdict, "--shm-size" in finding.advice) == ("note", True)


@pytest.fixture
def run(tmp_path):
    """A run whose process was killed."""
    run = RunDirectory(tmp_path / "run")
    run.write_manifest(state="running", stage="encoder")
    write_checkpoint({"global_step": 3}, run.last_checkpoint)
    write_checkpoint({"global_step": 2}, run.previous_checkpoint)
    return run


def test_a_finished_run_is_well(tiny, capsys):
    assert sidrec("doctor", "--run_dir", tiny.encoder_run) == 0
    out = capsys.readouterr().out
    assert all(line.startswith("ok ") for line in out.splitlines()), out
    assert "Semantic IDs" in out


def test_a_killed_run_with_all_its_troubles(run):
    owner = replace(Owner.this_process(), process_started="1")
    run.lock.write_text(json.dumps(asdict(owner)))
    run.last_checkpoint.write_bytes(b"")
    leftover = run.root / ".manifest.json.abc.part"
    leftover.touch()
    os.utime(leftover, (1, 1))
    found = {finding.what: finding for finding in examine_run(run)}
    assert found["state"].found == "running, but no process holds it: it was killed"
    assert "it has ended" in found["lock"].found
    assert found["last.ckpt"] == (
        "note",
        "last.ckpt",
        "empty",
        "last.previous.ckpt is used in its place",
    )
    assert found["last.previous.ckpt"].found == "whole, step 2"
    assert ".manifest.json.abc.part" in found["leftovers"].found


def test_a_run_that_cannot_go_on_ends_with_1(run, tmp_path, capsys):
    run.last_checkpoint.write_bytes(b"x")
    run.previous_checkpoint.unlink()
    assert sidrec("doctor", "--run_dir", run.root) == 1
    assert "problem" in capsys.readouterr().out
    assert sidrec("doctor", "--run_dir", tmp_path / "gone") == 1
    assert "gone does not exist" in capsys.readouterr().err


def test_the_facts_of_a_corpus_are_those_of_prepare(tmp_path, capsys):
    sizes = ("--items", "30", "--users", "20", "--interactions", "200", "--topics", "3")
    assert sidrec("prepare", "synthetic", "--out", tmp_path / "corpus", *sizes) == 0
    told = capsys.readouterr().err.splitlines()
    assert sidrec("doctor", "--corpus", tmp_path / "corpus") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 15
    for line in lines:
        name, value = line.removeprefix("ok").strip().split("  ", 1)
        assert any(f"{name}: {value.strip()}" in one for one in told), line
    assert sidrec("doctor", "--corpus", tmp_path) == 3
    assert "is not a corpus: it has no corpus.json" in capsys.readouterr().err
    assert sidrec("doctor", "--corpus", tmp_path, "--run_dir", tmp_path) == 2
    (tmp_path / "corpus" / "queries.parquet").write_bytes(b"torn")
    assert sidrec("doctor", "--corpus", tmp_path / "corpus") == 3
