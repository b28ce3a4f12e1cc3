"""``sidrec retrieve``: batch inference on anybody's requests, one JSON object a line."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser

from sidrec.console import say
from sidrec.corpus.disk import disk_errors
from sidrec.errors import ConfigError, DataError
from sidrec.files import atomic_file
from sidrec.suggestion import options_of, with_suggestion
from sidrec.types import TASKS, Request

if TYPE_CHECKING:
    from sidrec.generator.retriever import RetrievedItem, Retriever

_STREAM = "-"
_BATCHES_AT_ONCE = 16  # lines in memory: enough to put requests of like length together
_SAY_EVERY_S = 10.0


class RetrieveParser(ArgumentParser):
    """Parser whose error is one line that names the nearest valid key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with code 2."""
        del ex
        sys.stderr.write(f"sidrec retrieve: {with_suggestion(message, options_of(self))}\n")
        sys.exit(ConfigError.exit_code)


class BadRequestError(ValueError):
    """What is wrong with one line; it becomes the line's answer."""


def main(args: list[str]) -> None:
    """Run ``sidrec retrieve`` with the words after the command's name."""
    parser = RetrieveParser(
        prog="sidrec retrieve",
        description='Answer requests: {"id": "a", "task": "search", "query": "heist in Paris"} or '
        '{"id": "b", "task": "recommendation", "history": ["356", "260"]}, one a line.',
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with these options.")
    parser.add_argument("--from", type=str, required=True, help="Run directory of a generator.")
    parser.add_argument("--input", type=str, required=True, help="JSONL of requests; - is stdin.")
    parser.add_argument("--output", type=str, required=True, help="JSONL to write; - is stdout.")
    parser.add_argument("--top_k", type=int, default=30, help="Items per answer.")
    parser.add_argument("--batch_size", type=int, default=64, help="Requests decoded together.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    given = parser.parse_args(args)
    _refuse_bad_places(given.input, given.output)
    if min(given.top_k, given.batch_size) < 1:
        raise ConfigError("--top_k and --batch_size must be at least 1.")
    from sidrec.generator.retriever import Retriever

    retriever = Retriever.load(given["from"], device=given.device)
    started = time.monotonic()
    with _lines_of(given.input) as lines, _writer_to(given.output) as write:
        counts = answer_lines(
            retriever, lines, write, top_k=given.top_k, batch_size=given.batch_size
        )
    say(
        f"answered {counts['answered']:,}, errors {counts['errors']:,}, unknown items skipped "
        f"{counts['unknown']:,}, {time.monotonic() - started:.1f} s: {given.output}"
    )


def answer_lines(
    retriever: "Retriever",
    lines: Iterable[bytes],
    write: Callable[[str], object],
    *,
    top_k: int,
    batch_size: int,
) -> Counter[str]:
    """Answer every line that is not blank by one line, in their order.

    Memory stays the same however many lines there are.

    Returns:
        How many were ``answered``, how many were ``errors``, and how many history items were
        ``unknown`` to the catalogue.
    """
    counts: Counter[str] = Counter()
    said = time.monotonic()
    wanted = (line for line in lines if line.strip())
    while block := list(islice(wanted, batch_size * _BATCHES_AT_ONCE)):
        results: list[dict[str, Any]] = []
        requests: dict[int, Request] = {}
        for place, line in enumerate(block):
            result, request = _understood(line, retriever, counts)
            results.append(result)
            if request is not None:
                requests[place] = request
        answers = retriever.answer(list(requests.values()), top_k=top_k, batch_size=batch_size)
        for place, answer in zip(requests, answers, strict=True):
            results[place]["items"] = [_as_json(item) for item in answer]
        for result in results:
            write(json.dumps(result) + "\n")
        counts["answered"] += len(requests)
        counts["errors"] += len(block) - len(requests)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"retrieving: {counts['answered'] + counts['errors']:,} requests done")
    return counts


def _understood(
    line: bytes, retriever: "Retriever", counts: Counter[str]
) -> tuple[dict[str, Any], Request | None]:
    """Return the beginning of a line's result, and the request if there is one to answer."""
    given: Any = None
    try:
        given = _parsed(line)
        request, num_unknown = _request(given, retriever)
    except BadRequestError as error:
        own = given.get("id") if isinstance(given, dict) else None
        return {"id": own, "error": str(error)}, None
    counts["unknown"] += num_unknown
    return {"id": request.request_id}, request


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except RecursionError:
        raise BadRequestError("no valid JSON: nested too deeply") from None
    except ValueError as error:  # broken JSON or broken UTF-8
        raise BadRequestError(f"no valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadRequestError(f"expected a JSON object, got {type(given).__name__}")
    return given


def _request(given: dict[str, Any], retriever: "Retriever") -> tuple[Request, int]:
    own, task = given.get("id"), given.get("task")
    if not isinstance(own, str):
        raise BadRequestError("id must be a string")
    if task not in TASKS:
        raise BadRequestError(f"task must be one of {', '.join(TASKS)}, got {json.dumps(task)}")
    if task == "search":
        return Request(own, "search", _query(given), (), ()), 0
    items, num_unknown = retriever.known(_history(given))
    if not items:
        raise BadRequestError(
            f"history holds no item of the catalogue ({num_unknown} unknown); give one it knows"
        )
    return Request(own, "recommendation", "", items, ()), num_unknown


def _query(given: dict[str, Any]) -> str:
    query = given.get("query")
    if not isinstance(query, str):
        raise BadRequestError('search needs "query", a string')
    if not query.strip():
        raise BadRequestError("query is empty; give at least one word")
    return query.encode(errors="replace").decode()  # JSON may hold half a character


def _history(given: dict[str, Any]) -> list[str]:
    history = given.get("history")
    if not isinstance(history, list) or not all(isinstance(item, str) for item in history):
        raise BadRequestError('recommendation needs "history", a list of item_id strings')
    if not history:
        raise BadRequestError("history is empty; give at least one item_id")
    return history


def _as_json(item: "RetrievedItem") -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "score": round(item.score, 6),
        "semantic_id": list(item.semantic_id),
    }


def _refuse_bad_places(source: str, target: str) -> None:
    """Say before anything is loaded that a place cannot be read or written."""
    if source != _STREAM and (not Path(source).exists() or Path(source).is_dir()):
        raise DataError(f"--input {source} is no file; give JSONL of requests, or - for stdin.")
    if target != _STREAM and Path(target).is_dir():
        raise ConfigError(f"--output {target} is a folder; give a file, or - for stdout.")
    if _STREAM not in (source, target) and Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"--output {target} is the file of the requests; give another one.")


@contextmanager
def _lines_of(source: str) -> Iterator[IO[bytes]]:
    if source == _STREAM:
        yield sys.stdin.buffer
        return
    with Path(source).open("rb") as stream:
        yield stream


@contextmanager
def _writer_to(target: str) -> Iterator[Callable[[str], object]]:
    if target == _STREAM:
        yield sys.stdout.write
        return
    place = Path(target).resolve()  # a link stays, what it points to is written
    with disk_errors(place, "free space or choose another --output."):
        if place.exists() and not place.is_file():  # a device or a pipe is no file to replace
            with place.open("w") as stream:
                yield stream.write
            return
        with atomic_file(place) as temporary, temporary.open("w") as stream:
            yield stream.write
