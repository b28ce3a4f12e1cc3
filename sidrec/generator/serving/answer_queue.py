"""Answer queue: one thread answers the lines of all requests that wait, in one batch."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from sidrec.errors import SidrecError
from sidrec.generator.retrieval.jsonl_stream import answers_of

if TYPE_CHECKING:
    from sidrec.generator.retrieval.retriever import Retriever

MAX_WAITING = 64  # requests; bounds the memory of their bodies


class TooManyWaitingError(SidrecError):
    """Refusal of a request because too many others wait."""


@dataclass(frozen=True)
class _Job:
    """Lines to answer, or a function to call."""

    lines: list[bytes] = field(default_factory=list)
    function: Callable[[], Any] | None = None
    result: "Future[Any]" = field(default_factory=Future)


class AnswerQueue:
    """Queue in front of a retriever, emptied by one thread.

    The lines of all requests that wait are answered together, so scores can differ from those of a
    request alone as they do between two batch sizes: in the last digits.

    Args:
        retriever: Retriever that answers; used by the thread of this queue only.
        top_k: Items per answer.
        batch_size: Requests decoded together.
        max_waiting: Number of requests that may wait.
    """

    def __init__(
        self, retriever: "Retriever", *, top_k: int, batch_size: int, max_waiting: int = MAX_WAITING
    ) -> None:
        self.retriever, self.top_k, self.batch_size = retriever, top_k, batch_size
        self._jobs: Queue[_Job] = Queue(max_waiting)
        threading.Thread(target=self._work, name="answers", daemon=True).start()

    def submit(self, lines: list[bytes]) -> "Future[list[str]]":
        """Answer lines, none of them blank; the result has one line for each, in order.

        Raises:
            TooManyWaitingError: If ``max_waiting`` requests wait.
        """
        return self._put(_Job(lines=lines))

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Call a function that uses the retriever, in the thread of this queue.

        Raises:
            TooManyWaitingError: If ``max_waiting`` requests wait.
        """
        return self._put(_Job(function=function))

    def _put(self, job: _Job) -> "Future[Any]":
        try:
            self._jobs.put_nowait(job)
        except Full:
            raise TooManyWaitingError(
                f"{self._jobs.maxsize} requests wait already; ask again later."
            ) from None
        return job.result

    def _work(self) -> None:
        while True:
            jobs = [job for job in self._waiting() if job.result.set_running_or_notify_cancel()]
            asked = [job for job in jobs if job.function is None]
            try:
                self._answer(asked)
            except Exception as error:
                for job in asked:
                    job.result.set_exception(error)
            for job in jobs:
                if job.function is not None:
                    _call(job.function, job.result)

    def _waiting(self) -> list[_Job]:
        """Wait for a job, and return it with all others that wait."""
        jobs = [self._jobs.get()]
        try:
            while True:
                jobs.append(self._jobs.get_nowait())
        except Empty:
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        answers = answers_of(
            self.retriever,
            (line for job in jobs for line in job.lines),
            top_k=self.top_k,
            batch_size=self.batch_size,
        )
        end = 0
        for job in jobs:
            start, end = end, end + len(job.lines)
            job.result.set_result(answers[start:end])


def _call(function: Callable[[], Any], result: "Future[Any]") -> None:
    try:
        result.set_result(function())
    except Exception as error:
        result.set_exception(error)
