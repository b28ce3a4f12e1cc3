"""Resumable output file: finished blocks are files in ``OUTPUT.part`` until all are there."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOBase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sidrec.console import say
from sidrec.errors import ConfigError, DataError
from sidrec.files import atomic_file, read_json, write_json

_CHUNK_BYTES = 1 << 20


@runtime_checkable
class ByteStream(Protocol):
    """Binary stream, reduced to what this module needs; need not be seekable."""

    def readline(self, size: int, /) -> bytes:
        """Return the bytes through the next line end, at most ``size``."""
        ...


def read_lines(stream: ByteStream, *, max_line_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a stream, without reading ahead of the yielded ones.

    Of a line above ``max_line_bytes``, this many bytes and one more are kept, so that the caller
    can tell; the rest is skipped.
    """
    while line := stream.readline(max_line_bytes + 1):
        rest = line
        while len(line) > max_line_bytes and rest and not rest.endswith(b"\n"):
            rest = stream.readline(_CHUNK_BYTES)
        yield line


class BlockFiles:
    """Finished blocks of output, one file each, named by number and hash of the block's requests.

    Args:
        folder: Existing folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {int(one.name[:6]): one for one in folder.glob("*.jsonl")}

    @property
    def num_blocks(self) -> int:
        """Number of finished blocks."""
        return len(self._files)

    def find(self, number: int, block: Sequence[bytes]) -> str | None:
        """Return the output of a finished block; None if the block is still to be answered.

        Raises:
            ConfigError: If the block was finished for other requests.
        """
        file = self._files.get(number)
        if file is None:
            return None
        if file.name != _name(number, block):
            raise ConfigError(
                f"{self._folder} was begun with other requests (block {number} differs); give "
                "those again to resume, or delete the folder to start over."
            )
        return file.read_text()

    def keep(self, number: int, block: Sequence[bytes], text: str) -> None:
        """Write the output of a block, whole or not at all."""
        self._files[number] = self._folder / _name(number, block)
        with atomic_file(self._files[number]) as temporary:
            temporary.write_text(text)

    def join(self, target: Path) -> None:
        """Write all blocks into one file, in order, atomically."""
        with atomic_file(target) as temporary, temporary.open("wb") as output:
            for _, file in sorted(self._files.items()):
                with file.open("rb") as block:
                    shutil.copyfileobj(block, output)


@contextmanager
def block_files(target: Path, depends_on: dict[str, Any]) -> Iterator[BlockFiles]:
    """Yield the finished blocks of ``target``, old ones included; join them at the end.

    When the block raises, the files stay in ``target.part``, and the next call with the same
    requests and settings resumes. ``target`` keeps its old content until all blocks are joined.

    Args:
        target: Path of the complete output.
        depends_on: Everything besides the requests that the output depends on, as JSON.

    Raises:
        ConfigError: If the blocks were written with other settings, or another process is
            writing them.
    """
    folder = target.with_name(f"{target.name}.part")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        _lock(stream, folder)
        _check_settings(folder, depends_on)
        files = BlockFiles(folder)
        if files.num_blocks:
            say(f"resuming {target}: {files.num_blocks:,} finished blocks of requests")
        try:
            yield files
            files.join(target)
            shutil.rmtree(folder)
        finally:
            if not files.num_blocks:
                shutil.rmtree(folder, ignore_errors=True)


def _name(number: int, block: Sequence[bytes]) -> str:
    return f"{number:06d}-{hashlib.sha256(b''.join(block)).hexdigest()[:16]}.jsonl"


def _check_settings(folder: Path, depends_on: dict[str, Any]) -> None:
    """Refuse blocks of other settings; note the settings of a new output."""
    note = folder / "settings.json"
    try:
        theirs = read_json(note)
    except DataError:  # none, or damaged: blocks without settings count for nothing
        for file in folder.glob("*.jsonl"):
            file.unlink()
        write_json(note, depends_on)
        return
    differing = [
        f"{key} {theirs.get(key)}, now {depends_on.get(key)}"
        for key in sorted(theirs.keys() | depends_on.keys())
        if theirs.get(key) != depends_on.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder} was begun with other settings ({'; '.join(differing)}); give those again "
            "to resume, or delete the folder to start over."
        )


def _lock(stream: TextIOBase, folder: Path) -> None:
    with suppress(OSError):  # some network file systems have no locks
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is being written by another process; wait for it, or give another "
                "--output."
            ) from None
