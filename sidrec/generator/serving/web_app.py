"""Web application: the endpoint of ``sidrec retrieve``'s lines, and the page."""

import asyncio
import json
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sidrec import __version__
from sidrec.errors import DataError, SidrecError, one_line
from sidrec.generator.retrieval.jsonl_stream import answers_of
from sidrec.generator.serving.answer_queue import AnswerQueue, TooManyWaitingError
from sidrec.generator.serving.beam_path import as_json, recorded_paths
from sidrec.generator.serving.shown_catalogue import ShownCatalogue

MAX_BODY_BYTES = 8 << 20  # as long as the longest line that `sidrec retrieve` reads
MAX_LINES = 1_024
_MOST_PREFIXES = 40  # of a level, on the page
_LINES = "application/x-ndjson"
_PAGE_HEADERS = {  # the page loads nothing from anywhere
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
}


class RefusedError(Exception):
    """Refusal of a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def web_app(queue: AnswerQueue, *, run: str, hosts: list[str]) -> Starlette:
    """Return the application.

    Args:
        queue: Queue in front of the retriever.
        run: Name of the run, for the page.
        hosts: Host names that requests may name; ``*`` allows all. A browser that is led to this
            machine under a foreign name is refused.
    """
    pages = _Pages(queue, run)
    return Starlette(
        routes=[
            Route("/", pages.page),
            Route("/about", pages.about),
            Route("/catalogue", pages.catalogue),
            Route("/prefix", pages.prefix),
            Route("/retrieve", pages.retrieve, methods=["POST"]),
            Route("/explain", pages.explain, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={
            RefusedError: _refused,
            DataError: _refused,
            TooManyWaitingError: _refused,
            SidrecError: _refused,
        },
    )


class _Pages:
    def __init__(self, queue: AnswerQueue, run: str) -> None:
        self._queue, self._run = queue, run
        self._catalogue = ShownCatalogue(queue.retriever.generator)
        self._page = Path(__file__).with_name("page.html").read_text()

    async def page(self, request: Request) -> Response:
        """Return the page."""
        del request
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def about(self, request: Request) -> Response:
        """Return what the page says of the run."""
        del request
        ids = self._queue.retriever.generator.ids
        sizes = {task: list(one.table.codebook_sizes) for task, one in ids.bundles.items()}
        return JSONResponse(
            {
                "run": self._run,
                "version": __version__,
                "num_items": len(ids.item_ids),
                "top_k": self._queue.top_k,
                "codebook_sizes": sizes,
            }
        )

    async def catalogue(self, request: Request) -> Response:
        """Return items whose title contains ``?title=``."""
        return JSONResponse(self._catalogue.matching(request.query_params.get("title", "")))

    async def prefix(self, request: Request) -> Response:
        """Return items whose Semantic ID begins with ``?codes=12,200``, of the ``?task=``."""
        given = request.query_params.get("codes", "")
        try:
            codes = [int(code) for code in given.split(",")]
        except ValueError:
            raise RefusedError(400, "codes must be numbers, separated by commas") from None
        return JSONResponse(self._catalogue.below(request.query_params.get("task", ""), codes))

    async def retrieve(self, request: Request) -> Response:
        """Answer lines of requests by the lines of ``sidrec retrieve``.

        The status is 400 if no line could be answered.
        """
        lines = await _lines_of(request)
        answers = await _waited(self._queue.submit(lines))
        is_bad = all("error" in json.loads(answer) for answer in answers)
        return Response("".join(answers), 400 if is_bad else 200, media_type=_LINES)

    async def explain(self, request: Request) -> Response:
        """Answer one line, with the titles of the items and the path of the beams."""
        lines = await _lines_of(request)
        if len(lines) > 1:
            raise RefusedError(400, "explain takes one line; send several to /retrieve")
        explained = await _waited(self._queue.call(partial(self._explained, lines)))
        return JSONResponse(explained, 400 if "error" in explained["answer"] else 200)

    def _explained(self, lines: list[bytes]) -> dict[str, Any]:
        queue = self._queue
        with recorded_paths(queue.retriever) as paths:
            (text,) = answers_of(
                queue.retriever, lines, top_k=queue.top_k, batch_size=queue.batch_size
            )
        answer = json.loads(text)
        return {
            "answer": answer,
            "titles": self._catalogue.titles_of(
                [one["item_id"] for one in answer.get("items", ())]
            ),
            "levels": as_json(paths[-1], most=_MOST_PREFIXES) if paths else [],
        }


async def _lines_of(request: Request) -> list[bytes]:
    """Return the lines of a body that are not blank.

    Raises:
        RefusedError: If the body is too long, has too many lines, or none.
    """
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():  # to the end, so that the client reads the answer
        num_bytes += len(part)
        if num_bytes <= MAX_BODY_BYTES:
            parts.append(part)
    if num_bytes > MAX_BODY_BYTES:
        limit = f"{MAX_BODY_BYTES >> 20} MiB"
        raise RefusedError(413, f"body is longer than {limit}; use `sidrec retrieve` for files")
    lines = [line for line in b"".join(parts).split(b"\n") if line.strip()]
    if not lines:
        raise RefusedError(
            400, 'body is empty; send lines such as {"id": "a", "task": "search", …}'
        )
    if len(lines) > MAX_LINES:
        raise RefusedError(413, f"body has more than {MAX_LINES:,} lines; use `sidrec retrieve`")
    return lines


async def _waited(future: "Future[Any]") -> Any:  # noqa: ANN401
    return await asyncio.wrap_future(future)


def _refused(request: Request, error: Exception) -> Response:
    del request
    status = 503 if isinstance(error, TooManyWaitingError) else 500
    if isinstance(error, DataError):
        status = 400
    if isinstance(error, RefusedError):
        status = error.status
    line = json.dumps({"id": None, "error": one_line(str(error))}, ensure_ascii=False)
    return Response(line + "\n", status, media_type=_LINES)
