import time
from types import SimpleNamespace

import pytest

from sidrec import doctor
from tests.tiny import sidrec


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


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
    assert "takes no arguments, got --all" in capsys.readouterr().err
    assert sidrec("doctor", "--help") == 0
    assert "usage: sidrec doctor" in capsys.readouterr().out
