"""Resumable output file: it grows block by block, and resumes after an interruption."""

import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sidrec.console import say
from sidrec.errors import ConfigError, DataError
from sidrec.files import read_json, write_json

_CHUNK_BYTES = 1 << 20


@runtime_checkable
class ByteStream(Protocol):
    """Binary file, reduced to what this module needs."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...

    def readline(self, size: int, /) -> bytes:
        """Return the bytes through the next line end, at most ``size``."""
        ...


class LineReader:
    """Reader of lines from a binary stream, with the position and hash of the bytes read.

    Args:
        stream: Stream, read from its current position; need not be seekable.
        max_line_bytes: Maximum line length. Of a longer line, this many bytes and one more are
            kept, so that the caller can tell; the rest is skipped.
    """

    def __init__(self, stream: ByteStream, *, max_line_bytes: int) -> None:
        self._stream, self._max = stream, max_line_bytes
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """sha256 of all bytes read so far, in hexadecimal."""
        return self._digest.hexdigest()

    def skip(self, num_bytes: int) -> None:
        """Skip ``num_bytes``, or to the end of a shorter stream."""
        end = self.num_bytes + num_bytes
        while self.num_bytes < end and self._read(self._stream.read, end - self.num_bytes):
            pass

    def __iter__(self) -> Iterator[bytes]:
        """Yield the remaining lines, without reading ahead of the yielded ones."""
        while line := self._read(self._stream.readline, self._max + 1):
            rest = line
            while len(line) > self._max and rest and not rest.endswith(b"\n"):
                rest = self._read(self._stream.readline, _CHUNK_BYTES)
            yield line

    def _read(self, read: Callable[[int], bytes], num_bytes: int) -> bytes:
        part = read(min(num_bytes, max(_CHUNK_BYTES, self._max + 1)))
        self._digest.update(part)
        self.num_bytes += len(part)
        return part


class HalfWritten:
    """Partial output ``OUTPUT.part``, with its progress and inputs in ``OUTPUT.part.json``.

    The note records the answered bytes of input (their number and sha256), the bytes of output that
    answer them, and what else the answers depend on. It is written after each block, so a killed
    run loses one block at most. Output behind the recorded bytes is cut off.

    Args:
        stream: ``OUTPUT.part``, opened for reading and writing.
        note: ``OUTPUT.part.json``.
        depends_on: Everything besides the requests that the answers depend on, as JSON.
        lines: Reader of the requests.
    """

    def __init__(
        self, stream: BufferedRandom, note: Path, depends_on: dict[str, Any], lines: LineReader
    ) -> None:
        self._stream, self._note = stream, note
        self._depends_on, self._lines = depends_on, lines
        self.counts: Counter[str] = Counter()

    def write(self, text: str) -> None:
        """Append to the current block."""
        self._stream.write(text.encode())

    def go_on(self) -> None:
        """Move requests and output to the position at which the note records both as complete.

        Raises:
            ConfigError: If the note belongs to other requests, another run or other settings.
        """
        noted = self._noted()
        if noted is None:
            self._note.unlink(missing_ok=True)
            self._stream.truncate(0)
            return
        theirs = noted["depends_on"]
        differing = [
            f"{key} {theirs.get(key)}, now {self._depends_on.get(key)}"
            for key in sorted(theirs.keys() | self._depends_on.keys())
            if theirs.get(key) != self._depends_on.get(key)
        ]
        self._lines.skip(noted["input_bytes"])
        if self._lines.sha256 != noted["input_sha256"]:
            differing.append(f"the first {noted['input_bytes']:,} bytes of the requests differ")
        if differing:
            raise ConfigError(
                f"{self._stream.name} was begun with other settings ({'; '.join(differing)}); "
                "give those again to go on, or delete it to start over."
            )
        self._stream.truncate(noted["output_bytes"])
        self._stream.seek(noted["output_bytes"])
        self.counts = Counter(noted["counts"])
        done = self.counts["answered"] + self.counts["errors"]
        say(f"going on with {self._stream.name} after {done:,} requests")

    def end_block(self, counts: Counter[str]) -> None:
        """Flush the block and record it in the note, so that it survives any interruption."""
        self.counts = counts
        self.flush()
        content = {
            "depends_on": self._depends_on,
            "input_bytes": self._lines.num_bytes,
            "input_sha256": self._lines.sha256,
            "output_bytes": self._stream.tell(),
            "counts": dict(counts),
        }
        write_json(self._note, content)

    def flush(self) -> None:
        """Flush the file's bytes to disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _noted(self) -> dict[str, Any] | None:
        """Return the note if it matches the existing bytes."""
        try:
            noted: dict[str, Any] = read_json(self._note)
            size = os.fstat(self._stream.fileno()).st_size
            return noted if noted["output_bytes"] <= size else None
        except (DataError, KeyError, TypeError):
            return None


@contextmanager
def half_written(
    target: Path, depends_on: dict[str, Any], lines: LineReader
) -> Iterator[HalfWritten]:
    """Yield the partial output, resumed or new; it becomes ``target`` at the end.

    When the block raises, the recorded part stays. The next call with the same requests and
    settings resumes; ``target`` keeps its old content until then.

    Args:
        target: Path of the complete output.
        depends_on: Everything besides the requests that the answers depend on, as JSON.
        lines: Reader at the beginning of the requests.

    Raises:
        ConfigError: If the partial output belongs to other inputs, or another process is
            writing it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    note = part.with_name(f"{part.name}.json")
    part.touch()
    with part.open("r+b") as stream:
        _lock(stream)
        output = HalfWritten(stream, note, depends_on, lines)
        output.go_on()
        try:
            yield output
            output.flush()
            part.replace(target)
            note.unlink(missing_ok=True)
        finally:
            if not note.exists():  # not one complete block
                part.unlink(missing_ok=True)


def _lock(stream: BufferedRandom) -> None:
    with suppress(OSError):  # some network file systems have no locks
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{stream.name} is being written by another process; wait for it, or give "
                "another --output."
            ) from None
