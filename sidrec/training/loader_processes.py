"""Loader processes: start them from a thread-free server, watch them, end them with the run.

This is the only file that uses private names of ``torch.utils.data``; ``tests/training`` covers
each.
"""

import faulthandler
import mmap
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import context, forkserver, popen_forkserver, resource_tracker
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sidrec.errors import RunError
from sidrec.runs.preemption import STOP, STOP_SIGNALS, Preempted

BATCH_TIMEOUT_S = 600.0  # a loader process that makes no batch for this long counts as hung
STOP_TIMEOUT_S = 10.0  # the same once the process has been preempted
_POLL_S = 1.0
_SHUTDOWN_S = 5.0  # grace period in which loader processes exit by themselves
_TRACEBACK = signal.SIGUSR2


class LoaderContext(context.ForkServerContext):
    """Multiprocessing context that starts loader processes with ``forkserver``.

    A rank has many threads, and its collectives create objects that a forked child must not
    collect. The fork server has neither.
    """

    class Process(context.ForkServerProcess):
        """Loader process that never outlives its parent process."""

        @staticmethod
        def _Popen(process_obj: Any) -> "_Popen":  # noqa: ANN401, N802
            return _Popen(process_obj)


class _Popen(popen_forkserver.Popen):
    def __init__(self, process_obj: Any) -> None:  # noqa: ANN401
        _start_server()
        super().__init__(process_obj)

    def terminate(self) -> None:
        """Kill the process, since loader processes block SIGTERM."""
        self.kill()


def _start_server() -> None:
    """Start the fork server with the stop signals blocked; loader processes inherit the mask.

    Schedulers signal every process of a job, and the rank needs its loader for its last step.
    """
    resource_tracker.ensure_running()  # would unblock SIGTERM if the server had to start it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*STOP_SIGNALS, signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(worker_id: int) -> None:
    """Prepare a loader process: exit with its parent, and print a traceback on request."""
    del worker_id
    faulthandler.register(_TRACEBACK, all_threads=False)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def loader_settings(dataset: object) -> dict[str, Any]:
    """Return the ``DataLoader`` arguments for loader processes of this module.

    Args:
        dataset: Dataset whose module the server imports once, instead of each loader process.
    """
    multiprocessing.set_forkserver_preload([type(dataset).__module__])
    return {
        "multiprocessing_context": LoaderContext(),
        "worker_init_fn": follow_parent,
        "timeout": BATCH_TIMEOUT_S,
        "persistent_workers": True,
    }


class WatchedIterator(_MultiProcessingDataLoaderIter):
    """Iterator over the batches of loader processes that raises when one of them hangs.

    Args:
        loader: Loader whose ``timeout`` is the longest wait for a batch, in seconds.
    """

    def _try_get_data(self, timeout: float = _POLL_S) -> tuple[bool, Any]:
        """Return the next batch.

        Raises:
            RunError: If no batch comes within ``timeout``; names the process.
            Preempted: If the run is preempted and no batch comes within ``STOP_TIMEOUT_S``.
        """
        began = time.monotonic()
        while True:
            is_there, batch = super()._try_get_data(min(_POLL_S, timeout))  # type: ignore[no-untyped-call]
            if is_there:
                return is_there, batch
            now = time.monotonic()
            if STOP.came_at is not None and now - max(began, STOP.came_at) > STOP_TIMEOUT_S:
                self._kill()
                raise Preempted(STOP.name)
            if now - began >= timeout:
                self._give_up(timeout)

    def _give_up(self, timeout: float) -> None:
        task = self._task_info.get(self._rcvd_idx)
        number = 0 if task is None else task[0]
        process = self._workers[number]
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, _TRACEBACK)
        time.sleep(1.0)  # time for the traceback to be written
        self._kill()
        raise RunError(
            f"Loader process {number} of {len(self._workers)} (pid {process.pid}) has made no "
            f"batch for {timeout:.0f} s; its traceback is above. Check the disk of the corpus, "
            "then run the same command again to resume, or set data.num_workers to 0."
        )

    def _kill(self) -> None:
        for process in self._workers:
            process.kill()

    def _shutdown_workers(self) -> None:
        """End all loader processes; kill those that do not exit by themselves."""
        if getattr(self, "_shutdown", True):
            return
        timer = threading.Timer(_SHUTDOWN_S, self._kill)
        timer.daemon = True
        timer.start()
        try:
            super()._shutdown_workers()
        finally:
            timer.cancel()


def _reduce_memmap(array: np.memmap[Any, Any]) -> tuple[Any, ...]:
    """Pickle a read-only memory map by its file, so that loader processes share its pages."""
    if array.mode != "r" or not isinstance(array.base, mmap.mmap):  # a view has another offset
        return np.asarray(array).__reduce__()  # type: ignore[return-value]
    order = "F" if array.flags.fnc else "C"
    return np.memmap, (array.filename, array.dtype, "r", array.offset, array.shape, order)


ForkingPickler.register(np.memmap, _reduce_memmap)
