import os
import subprocess
import sys
import time

import pytest

from sidrec.distributed import silent_ranks
from sidrec.errors import DataError, RunError
from sidrec.runs import rank_failures as ranks
from sidrec.runs.directory import RunDirectory
from sidrec.runs.preemption import STOP, Preempted
from sidrec.runs.rank_failures import explained
from tests.patience import patient
from tests.ranks import run_on_ranks
from tests.tiny import encoder_settings, write_yaml


@pytest.fixture(autouse=True)
def _no_signal_came(monkeypatch):
    monkeypatch.setattr(STOP, "name", None)  # an earlier test of this process may have sent one


def test_a_single_process_keeps_its_error():
    error = ValueError("x")
    assert explained(error) is error


def test_several_ranks_name_theirs(monkeypatch):
    monkeypatch.setattr(ranks, "rank_and_world_size", lambda: (1, 2))
    told = explained(DataError("bad row"))
    assert isinstance(told, DataError)
    assert str(told) == "rank 1 of 2: bad row"
    assert str(explained(ZeroDivisionError("x"))) == "rank 1 of 2: x"
    lost = explained(RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert str(lost) == (
        "rank 1 of 2: lost the connection to another rank, whose error comes first."
    )


def test_a_dead_worker_is_named():
    told = explained(RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"))
    assert str(told).startswith("A process that makes batches (pid 12) died, often from lack")
    told = explained(RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "))
    assert "(pid 12)" in str(told)


def test_ranks_that_never_came_are_no_riddle():
    told = explained(
        RuntimeError("Timed out after 9 seconds waiting for clients. 1/2 clients joined.")
    )
    assert str(told).startswith("Only 1 of 2 ranks connected in time; check the logs of the others")


def test_whatever_fails_after_a_signal_is_preemption(monkeypatch):
    monkeypatch.setattr(STOP, "name", "SIGTERM")
    assert isinstance(explained(RuntimeError("Connection closed by peer")), Preempted)


def rank_one_says_nothing(rank, world_size, tmp_path):
    if rank == 0:
        assert silent_ranks(wait_s=0.5) == [1]
    time.sleep(0.8)
    assert silent_ranks(wait_s=5.0) == []


def test_silent_ranks_are_found(tmp_path):
    run_on_ranks(rank_one_says_nothing, tmp_path)


def test_who_hangs_is_said_or_that_nobody_does(monkeypatch):
    monkeypatch.setattr(ranks, "rank_and_world_size", lambda: (0, 3))
    monkeypatch.setattr(ranks, "silent_ranks", lambda wait_s: [1, 2])
    told = explained(RuntimeError("Timed out waiting 3000ms for recv operation to complete"))
    assert isinstance(told, RunError)
    assert "waited in vain for rank 1, rank 2, which hangs" in str(told)
    monkeypatch.setattr(ranks, "silent_ranks", lambda wait_s: [])
    assert "waited for each other too long" in str(explained(RuntimeError("Timed out")))


# Whole runs of two ranks that Lightning launches, each in processes of its own.


@pytest.fixture
def two_ranks(tiny, tmp_path):
    """Return a function that runs a fit on two ranks: code, seconds since the failure, lines."""
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    settings["trainer"] |= {"devices": 2, "strategy": "ddp", "callbacks": []}
    config = write_yaml(tmp_path / "config.yaml", settings)
    command = [sys.executable, "-m", "sidrec", "fit", "--config", config]
    environment = os.environ | {"SIDREC_ALLOW_IMPORTS": "tests"}

    def run(*arguments):
        fit = [*map(str, command), "--run_dir", str(tmp_path / "run"), *arguments]
        done = subprocess.run(
            fit, env=environment, capture_output=True, text=True, timeout=patient(600), check=False
        )
        own = [line for line in done.stderr.splitlines() if not _is_noise(line)]
        failed = tmp_path / "run" / "failed"
        seconds = time.time() - failed.stat().st_mtime if failed.exists() else 0.0
        return done.returncode, seconds, own

    return run


def _is_noise(line):
    return "Warning" in line or line.startswith((" ", "/")) or "It is recommended" in line


def fail(step, rank, how):
    names = {"step": step, "rank": rank, "how": how}
    callback = "--trainer.callbacks+=tests.stops.Fail"
    return (callback, *(f"--trainer.callbacks.{name}={value}" for name, value in names.items()))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_others(two_ranks, tmp_path, rank):
    code, seconds, lines = two_ranks(*fail(2, rank, "raise"))
    assert code == 1
    errors = [line for line in lines if line.startswith("sidrec:")]
    assert f"ZeroDivisionError: rank {rank} of 2: made to fail" in errors[0], lines
    assert RunDirectory(tmp_path / "run").state() == "failed"
    assert seconds < patient(60)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(two_ranks):
    code, _, lines = two_ranks(*fail(2, 1, "hang"))
    assert code == 1
    assert any("waited in vain for rank 1, which hangs" in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_rank_was_killed_the_run_goes_on(two_ranks, tmp_path, rank):
    code, _, lines = two_ranks(*fail(2, rank, "killed"))
    assert code != 0
    code, _, lines = two_ranks()
    assert code == 0, lines
    assert RunDirectory(tmp_path / "run").state() == "finished"


@pytest.mark.slow
def test_one_rank_is_told_and_both_stop(two_ranks, tmp_path):
    callback = "--trainer.callbacks+=tests.stops.SignalIn"
    names = {"hook": "on_train_batch_start", "signal_name": "SIGUSR1", "rank": 1}
    arguments = [f"--trainer.callbacks.{name}={value}" for name, value in names.items()]
    code, _, lines = two_ranks(callback, *arguments)
    assert code == 85, lines
    assert RunDirectory(tmp_path / "run").state() == "preempted"
    assert two_ranks()[0] == 0
