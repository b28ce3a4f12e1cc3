import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from sidrec.errors import RunError
from sidrec.runs.preemption import STOP_SIGNALS
from sidrec.training.loader_processes import LoaderContext
from tests.patience import patient
from tests.training.made import NUM_BATCHES, HangingBatches, loader_of


def stat_of(pid):
    """Return the state of a process and its parent."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return state, int(parent)


def exists(pid):
    """Return whether a process runs; one that waits for its parent's notice does not."""
    return stat_of(pid)[0] not in "ZX"


def all_end(pids, seconds):
    end = time.monotonic() + patient(seconds)
    while time.monotonic() < end and any(map(exists, pids)):
        time.sleep(0.05)
    return not any(map(exists, pids))


def test_a_process_that_hangs_is_named_and_killed(tmp_path):
    errors = tmp_path / "errors"
    batches = iter(loader_of(HangingBatches(hang_at=3, errors=errors), timeout=600.0))
    seen = [next(batches) for _ in range(3)]
    batches._timeout = patient(1)  # not before: processes take their time to start
    assert [int(batch[0]) for batch in seen] == [0, 1, 2]
    pids = {int(batch[1]) for batch in seen}
    with pytest.raises(RunError, match=r"Loader process 1 of 2 \(pid (\d+)\) has made") as caught:
        next(batches)
    assert int(re.search(r"pid (\d+)", str(caught.value))[1]) == int(seen[1][1])
    assert all_end(pids, 5)
    assert "in __getitem__" in errors.read_text()


def test_signals_of_a_scheduler_leave_the_processes_alone():
    loader = loader_of(HangingBatches())
    batches = iter(loader)
    pids = {int(next(batches)[1]) for _ in range(2)}
    for pid in (*pids, forkserver._forkserver._forkserver_pid):
        for number in (*STOP_SIGNALS, signal.SIGINT):
            os.kill(pid, number)
    assert [int(batch[0]) for batch in batches] == list(range(2, NUM_BATCHES))
    assert all(map(exists, pids))
    del batches, loader
    assert all_end(pids, 5)


def test_processes_do_not_come_from_a_rank_with_threads():
    process = LoaderContext().Process(target=time.sleep, args=(100,))
    process.start()
    assert process in multiprocessing.active_children()
    assert stat_of(process.pid)[1] == forkserver._forkserver._forkserver_pid
    process.terminate()
    process.join(patient(5))
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def hanging(tmp_path):
    """Return a training in a process of its own whose loader hangs, and its loader processes."""
    code = f"from tests.training.made import train; train({str(tmp_path)!r})"
    rank = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = {int(rank.stdout.readline()) for _ in range(4)}
    assert len(pids) == 2
    yield rank, pids
    rank.kill()
    rank.communicate()


@pytest.mark.slow
def test_a_rank_whose_loader_hangs_ends_after_sigterm(hanging):
    rank, pids = hanging
    rank.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = rank.communicate(timeout=patient(60))
    assert time.monotonic() - began < patient(16)
    assert errors.strip().endswith("Preempted: SIGTERM"), errors
    assert not any(map(exists, pids))


@pytest.mark.slow
def test_processes_that_hang_end_with_a_killed_rank(hanging):
    rank, pids = hanging
    rank.kill()
    assert all_end(pids, 5)


def test_a_memory_map_is_pickled_by_its_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10_000, dtype=np.int32).reshape(100, 100))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for array, is_short in ((mapped, True), (mapped[3:], False), (mapped[:, 2], False)):
        text = bytes(ForkingPickler.dumps(array))
        assert (len(text) < 1_000) == is_short or array.nbytes < 1_000
        np.testing.assert_array_equal(pickle.loads(text), array)  # noqa: S301
