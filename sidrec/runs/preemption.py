"""Preemption of a process by SIGTERM or SIGUSR1."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED_EXIT_CODE = 85  # exit code of a preempted run, which can resume
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PATIENCE_S = 20.0  # for a process blocked in a library call that does not see the signal
LAST_PATIENCE_S = 90.0  # for a process that has seen the signal but does not exit


class Preempted(BaseException):
    """Preemption of this process; a BaseException, so that no handler takes it for an error."""


class StopRequest:
    """Stop request: whether a signal has asked this process to end.

    Outside training the first signal raises ``Preempted`` at once. Files are written atomically, so
    only time is lost. During training the request waits for the end of a step, where all ranks
    agree, save and stop. Every further signal is ignored.

    A process blocked in a library call (because another rank is gone, say) never runs Python's
    handler; a thread ends it with code 85 after ``PATIENCE_S``, unless it is training.

    Attributes:
        name: Name of the received signal; None before.
        came_at: Time of the signal, by ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.came_at: float | None = None
        self.waits_for_step = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals while the block runs; a no-op outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.name, self.came_at, self.waits_for_step = None, None, False
        self._process, over = os.getpid(), threading.Event()
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd_before)
            os.close(writer)  # ends the thread, which closes its side

    def wait_for_step(self) -> None:
        """Mark the begin of training: from now on a signal only stores its name."""
        self.waits_for_step = True

    def wait_no_more(self) -> None:
        """Mark the end of training; raise ``Preempted`` if a signal came during the last step."""
        self.waits_for_step = False
        if self.name is not None:
            raise Preempted(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process or self.name is not None:
            return
        self.name, self.came_at = signal.Signals(number).name, time.monotonic()
        when = "after this step" if self.waits_for_step else "now"
        _write(f"{self.name}: stopping {when}\n")
        if not self.waits_for_step:
            raise Preempted(self.name)

    def _watch(self, reader: int, over: threading.Event) -> None:
        """Read signal numbers on arrival, even while the main thread is in a library call."""
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in STOP_SIGNALS:
                    end = threading.Thread(target=self._end_if_stuck, args=(over,), daemon=True)
                    end.start()

    def _end_if_stuck(self, over: threading.Event) -> None:
        """End the process, unless it leaves the listening block in time."""
        if over.wait(PATIENCE_S) or (self.name is not None and over.wait(LAST_PATIENCE_S)):
            return
        if not self.waits_for_step and os.getpid() == self._process:
            _write("This process was told to stop and waits for another one; ending it.\n")
            os._exit(PREEMPTED_EXIT_CODE)


def _write(text: str) -> None:
    os.write(2, text.encode())  # a handler must not enter a buffered stream


STOP = StopRequest()
