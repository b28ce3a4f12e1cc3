"""``sidrec retrieve``: batch inference on requests in JSON Lines."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sidrec.cli.parser import CommandParser
from sidrec.console import say
from sidrec.errors import ConfigError, DataError
from sidrec.files import disk_errors
from sidrec.generator.retrieval.jsonl_stream import BLOCK_LINES, answer_lines
from sidrec.generator.retrieval.parse_request import MAX_LINE_BYTES
from sidrec.generator.retrieval.resumable_output import BlockFiles, block_files, read_lines
from sidrec.runs.directory import RunDirectory

if TYPE_CHECKING:
    from sidrec.generator.retrieval.retriever import Retriever

_STREAM = "-"
_SAY_EVERY_S = 10.0


def main(args: list[str]) -> None:
    """Run ``sidrec retrieve`` with the words after the command's name."""
    parser = CommandParser(
        prog="sidrec retrieve",
        description='Answer requests: {"id": "a", "task": "search", "query": "heist in Paris"} or '
        '{"id": "b", "task": "recommendation", "history": ["356", "260"]}, one a line.',
        source="Run directory of a generator.",
        source_required=True,
    )
    parser.add_argument("--ids", type=str | None, help="Bundle with items appended after training.")
    parser.add_argument("--input", type=str, required=True, help="JSONL of requests; - is stdin.")
    parser.add_argument("--output", type=str, required=True, help="JSONL to write; - is stdout.")
    parser.add_argument("--top_k", type=int, default=30, help="Items per answer.")
    parser.add_argument("--batch_size", type=int, default=64, help="Requests decoded together.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    given = parser.parse_args(args)
    _refuse_bad_places(given.input, given.output)
    if min(given.top_k, given.batch_size) < 1:
        raise ConfigError("--top_k and --batch_size must be at least 1.")
    from sidrec.generator.retrieval.retriever import Retriever

    retriever = Retriever.load(given["from"], device=given.device, semantic_ids=given.ids)
    depends_on = {"run": identity_of(given["from"]), "top_k": given.top_k}
    if given.ids is not None:
        depends_on["ids"] = retriever.generator.ids.hash
    started = time.monotonic()
    counts = answer_file(
        retriever,
        given.input,
        given.output,
        depends_on=depends_on,
        top_k=given.top_k,
        batch_size=given.batch_size,
    )
    cut = f", queries cut {counts['cut']:,}" if counts["cut"] else ""
    say(
        f"answered {counts['answered']:,}, errors {counts['errors']:,}, unknown items skipped "
        f"{counts['unknown']:,}{cut}, {time.monotonic() - started:.1f} s: {given.output}"
    )


def answer_file(
    retriever: "Retriever",
    source: str,
    target: str,
    *,
    depends_on: dict[str, Any],
    top_k: int,
    batch_size: int,
    block_lines: int = BLOCK_LINES,
) -> Counter[str]:
    """Answer a file of requests into another file; resume after an interruption.

    Args:
        retriever: Retriever that answers.
        source: JSONL of requests; ``-`` is stdin.
        target: JSONL of answers, complete or absent; ``-`` is stdout.
        depends_on: Everything besides the requests that the answers depend on.
        top_k: Items per answer.
        batch_size: Requests decoded together.
        block_lines: Requests after which the answers are saved.

    Returns:
        Counts of ``answer_lines`` over all blocks, including those of an interrupted call.
    """
    counts: Counter[str] = Counter()
    progress = Progress(_size_of(source))
    with _stream_of(source) as stream, _output_to(target, depends_on) as output:
        lines = read_lines(stream, max_line_bytes=MAX_LINE_BYTES)
        for block in answer_lines(
            retriever, lines, output, top_k=top_k, batch_size=batch_size, block_lines=block_lines
        ):
            counts += block
            progress(counts)
    return counts


def identity_of(run_folder: str) -> str:
    """Return an identity of a trained run, without reading its weights."""
    file = RunDirectory(Path(run_folder)).finished_checkpoint().resolve()
    facts = file.stat()
    return f"{file} of {facts.st_size} bytes, time {facts.st_mtime_ns}"


def _refuse_bad_places(source: str, target: str) -> None:
    """Check that source and target are readable and writable, before anything is loaded."""
    if source != _STREAM and (not Path(source).exists() or Path(source).is_dir()):
        raise DataError(f"--input {source} is not a file; give JSONL of requests, or - for stdin.")
    if target != _STREAM and Path(target).is_dir():
        raise ConfigError(f"--output {target} is a folder; give a file, or - for stdout.")
    if _STREAM not in (source, target) and Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"--output {target} is the file of the requests; give another one.")


@contextmanager
def _stream_of(source: str) -> Iterator[BinaryIO]:
    if source == _STREAM:
        yield sys.stdin.buffer
        return
    with Path(source).open("rb") as stream:
        yield stream


def _size_of(source: str) -> int | None:
    return Path(source).stat().st_size if source != _STREAM and Path(source).is_file() else None


class Streamed:
    """Output that cannot resume: a pipe, a device, the terminal."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 (whatever writes text)
        self._stream = stream

    def find(self, number: int, block: Sequence[bytes]) -> None:
        """Find nothing: what was written is gone."""

    def keep(self, number: int, block: Sequence[bytes], text: str) -> None:
        """Write the answers of a block for the reader at the other end."""
        del number, block
        self._stream.write(text)
        self._stream.flush()


@contextmanager
def _output_to(target: str, depends_on: dict[str, Any]) -> Iterator[BlockFiles | Streamed]:
    if target == _STREAM:
        yield Streamed(sys.stdout)
        return
    place = Path(target).resolve()  # a link stays, its target is written
    with disk_errors(place, "free space and run the same command again to resume."):
        if place.exists() and not place.is_file():  # a device or a pipe cannot be replaced
            with place.open("w") as stream:
                yield Streamed(stream)
            return
        with block_files(place, depends_on) as output:
            yield output


class Progress:
    """Progress lines for answered requests, one every ten seconds at most.

    Args:
        num_bytes: Size of the requests; None if unknown.
    """

    def __init__(self, num_bytes: int | None) -> None:
        self._num_bytes = num_bytes
        self._said = self._started = time.monotonic()

    def __call__(self, counts: Counter[str]) -> None:
        """Print how much is done and the remaining time."""
        now, new_bytes = time.monotonic(), counts["bytes"] - counts["found"]
        if now - self._said < _SAY_EVERY_S:
            return
        self._said = now
        text = f"retrieving: {counts['answered'] + counts['errors']:,} requests done"
        if self._num_bytes and new_bytes:
            left_s = (self._num_bytes - counts["bytes"]) / new_bytes * (now - self._started)
            share = min(1.0, counts["bytes"] / self._num_bytes)
            text += f", {share:.0%} of the input, about {max(0, left_s):.0f} s left"
        say(text)
