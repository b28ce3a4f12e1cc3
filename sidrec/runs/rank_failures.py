"""Failures of a run with several ranks: launching, ending, and what each rank reports."""

import os
import re
import subprocess
import threading
import time
from typing import Any

import lightning as L

from sidrec.distributed import rank_and_world_size, silent_ranks
from sidrec.errors import RunError, SidrecError
from sidrec.runs.callbacks import CheckpointFiles
from sidrec.runs.lightning_private import disable_signal_handlers, set_process_observer
from sidrec.runs.preemption import PREEMPTED_EXIT_CODE, STOP, Preempted

_POLL_S = 0.5
_OWN_END_S = 45.0  # for the launching rank to exit by itself after a launched one has failed
_OTHERS_END_S = 5.0  # for launched ranks to exit by themselves
_REPORT_S = 10.0  # for all waiting ranks to give up
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|remote process exited|network error",
    re.IGNORECASE,
)
_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_NOT_ALL_CAME = re.compile(r"(\d+)/(\d+) clients joined")
_WORKER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)")


def take_charge_of(trainer: L.Trainer) -> None:
    """Replace a trainer's checkpoint files, signal handlers and process observer by ours.

    Lightning's signal handlers save and broadcast inside the handler, and requeue Slurm jobs
    themselves; ours only set ``StopRequest``. Lightning's observer of launched processes kills
    rank 0 with SIGKILL, which prevents any report.
    """
    trainer.strategy.checkpoint_io = CheckpointFiles()
    disable_signal_handlers(trainer)
    set_process_observer(_watch_launched_ranks)


def end_launched_ranks(trainer: L.Trainer) -> bool:
    """Wait briefly for the processes that this one launched, then end them.

    Returns:
        Whether this process launched any.
    """
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    end = time.monotonic() + _OTHERS_END_S
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.kill()
    return bool(processes)


def explained(error: BaseException) -> BaseException:
    """Return the error that this rank reports at its end.

    It names the rank when there are several. A rank that fails because of another one says so; the
    other rank's error is on the screen by then, since connections break when its process ends.
    """
    if isinstance(error, Preempted) or STOP.name is not None:
        return error if isinstance(error, Preempted) else Preempted(STOP.name)
    text = str(error)
    if died := _WORKER_DIED.search(text):
        return RunError(
            f"A process that makes batches (pid {died[1].strip()}) died, often from lack of "
            "memory; run the same command again, or lower data.num_workers."
        )
    if came := _NOT_ALL_CAME.search(text):
        return RunError(
            f"Only {came[1]} of {came[2]} ranks connected in time; check the logs of the others, "
            "and start as many processes as trainer.devices x trainer.num_nodes."
        )
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return error
    name = f"rank {rank} of {world_size}"
    if isinstance(error, SidrecError):
        return type(error)(f"{name}: {text}")
    if isinstance(error, RuntimeError) and _TIMED_OUT.search(text):
        return RunError(f"{name}: {_who_hangs()}")
    if isinstance(error, RuntimeError) and _LOST.search(text):
        return RunError(f"{name}: lost the connection to another rank, whose error comes first.")
    error.args = (f"{name}: {text}", *error.args[1:])
    return error


def _who_hangs() -> str:
    silent = silent_ranks(wait_s=_REPORT_S)
    if not silent:
        return (
            "the ranks waited for each other too long; is the network up, is one very slow? "
            "The limit is timeout in trainer.strategy."
        )
    names = ", ".join(f"rank {rank}" for rank in silent)
    return (
        f"waited in vain for {names}, which hangs; look at what that process does "
        "(py-spy dump --pid PID). The limit is timeout in trainer.strategy."
    )


def _watch_launched_ranks(processes: list[subprocess.Popen[Any]]) -> None:
    threading.Thread(target=_watch, args=(processes,), daemon=True).start()


def _watch(processes: list[subprocess.Popen[Any]]) -> None:
    """End this process if a launched rank has failed and this one does not exit."""
    while not any(_has_failed(process) for process in processes):
        if all(process.poll() is not None for process in processes):
            return
        time.sleep(_POLL_S)
    time.sleep(_OWN_END_S)
    for process in processes:
        if process.poll() is None:
            process.kill()
    os.write(2, b"sidrec: rank 0: another rank failed, see its error above.\n")
    os._exit(1)


def _has_failed(process: "subprocess.Popen[Any]") -> bool:
    return process.poll() not in (None, 0, PREEMPTED_EXIT_CODE)
