import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from sidrec.errors import RunError
from sidrec.runs import lock
from sidrec.runs.checkpoints import step_of, write_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.runs.lock import Owner, has_lost_run, locked, read_owner
from tests.patience import patient


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def leave_lock(run, silent_s=0.0, **changes):
    """Write the lock of another owner, as a process would that is gone."""
    owner = replace(Owner.this_process(), token="other", **changes)  # noqa: S106
    run.root.mkdir(parents=True, exist_ok=True)
    run.lock.write_text(json.dumps(asdict(owner)))
    then = run.lock.stat().st_mtime - silent_s
    os.utime(run.lock, (then, then))
    return owner


def test_the_lock_is_there_only_while_it_is_held(run):
    with locked(run):
        assert read_owner(run.lock).pid == os.getpid()
    assert list(run.root.iterdir()) == []


def test_a_second_process_is_refused_and_told_by_whom(run):
    code = (
        "import sys; from pathlib import Path; from sidrec.runs.directory import RunDirectory\n"
        "from sidrec.runs.lock import locked\n"
        "with locked(RunDirectory(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(run.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=rf"in use by process {other.pid} on .* \(since 20"),
            locked(run),
        ):
            pass
        assert read_owner(run.lock).pid == other.pid
        other.kill()
        other.wait()
        with locked(run):  # it could not give the lock back
            assert read_owner(run.lock).pid == os.getpid()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pid": 2**22 + 1}, "it has ended"),
        ({"process_started": "1"}, "it has ended"),  # the pid was given to another process
        ({"machine": "m2", "job": "7"}, "the job was requeued"),
        ({"machine": "m2", "silent_s": 301.0}, "no heartbeat for 301 s"),
        ({"machine": "m2", "host": "renamed", "silent_s": 9999.0}, "no heartbeat"),
    ],
)
def test_locks_of_the_dead_are_taken_over_and_it_is_said(run, monkeypatch, capsys, changes, why):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    leave_lock(run, **({"job": ""} | changes))
    with locked(run):
        assert read_owner(run.lock).token != "other"  # noqa: S105
    said = capsys.readouterr().err
    assert "taking over from process" in said
    assert why in said
    assert list(run.root.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "renamed"},  # the same process, after a change of the host's name
        {"machine": "m2", "silent_s": 200.0},
        {"machine": "m2", "job": "8", "silent_s": 0.0},
    ],
)
def test_locks_of_the_living_are_respected(run, monkeypatch, changes):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    leave_lock(run, **({"job": ""} | changes))
    with (
        pytest.raises(RunError, match="wait for it, stop it, or give another --run_dir"),
        locked(run),
    ):
        pass
    assert [file.name for file in run.root.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("content", ["", "{"])
def test_a_young_lock_that_cannot_be_read_is_not_free(run, capsys, content):
    """Without hard links a lock is empty for a moment before its owner's name stands in it."""
    run.root.mkdir()
    run.lock.write_text(content)
    with pytest.raises(RunError, match="in use by an unknown process, last heartbeat"), locked(run):
        pass
    assert run.lock.read_text() == content
    os.utime(run.lock, (1, 1))
    with locked(run):
        pass
    assert "from an unknown process: no heartbeat for" in capsys.readouterr().err


def test_a_lock_taken_by_somebody_else_is_not_given_back(run):
    with locked(run):
        leave_lock(run)
    assert read_owner(run.lock).token == "other"  # noqa: S105


def test_an_owner_that_lost_the_run_writes_nothing_more(run):
    """It was suspended for ten minutes, and a process on another machine took the run over."""
    checkpoint = run.last_checkpoint
    with locked(run):
        write_checkpoint({"global_step": 1}, checkpoint)
        leave_lock(run, machine="m2", host="node7")
        with pytest.raises(RunError, match=r"run was taken over by process \d+ on node7 \(since"):
            write_checkpoint({"global_step": 2}, checkpoint)
    assert step_of(checkpoint) == 1
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_a_run_is_lost_to_another_owner_or_with_its_folder(run):
    with locked(run):
        assert not has_lost_run()
        leave_lock(run, machine="m2", host="node7")
        assert has_lost_run()
        shutil.rmtree(run.root)
        assert has_lost_run()
    assert not has_lost_run()


def test_a_lock_that_somebody_deleted_is_written_anew(run):
    with locked(run):
        mine = read_owner(run.lock)
        run.lock.unlink()
        write_checkpoint({"global_step": 1}, run.last_checkpoint)
        assert read_owner(run.lock) == mine


def test_the_heartbeat_ends_an_owner_that_lost_the_run(run):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from sidrec.runs import lock\nfrom sidrec.runs.directory import RunDirectory\n"
        "lock.HEARTBEAT_S = 0.05\n"
        "with lock.locked(RunDirectory(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(run.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as first:
        assert first.stdout.readline() == "held\n"
        leave_lock(run, machine="m2", host="node7")
        _, errors = first.communicate(timeout=patient(20))
    assert first.returncode == 1
    assert "taken over by process" in errors
    assert "it stops without writing" in errors
    assert read_owner(run.lock).host == "node7"


def test_without_hard_links_it_is_a_lock_too(run, monkeypatch):
    def refuse(*paths):
        raise OSError("not supported")

    monkeypatch.setattr(lock.os, "link", refuse)
    with (
        locked(run),
        pytest.raises(RunError, match=f"in use by process {os.getpid()} on"),
        locked(run),
    ):
        pass
    assert not run.lock.exists()


def test_a_thread_gives_signs_of_life(run, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with locked(run):
        os.utime(run.lock, (1, 1))
        for _ in range(200):
            if run.lock.stat().st_mtime > 1:
                break
            lock.time.sleep(0.02)
        assert run.lock.stat().st_mtime > 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            RunError, match=r"file/run cannot be written \(Not a directory\); give a writable"
        ),
        locked(RunDirectory(tmp_path / "file" / "run")),
    ):
        pass

    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.Path, "write_text", full)
    with (
        pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"),
        locked(RunDirectory(tmp_path / "run")),
    ):
        pass
