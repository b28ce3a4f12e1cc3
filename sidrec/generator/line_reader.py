"""Lines of a stream in constant memory, with a fingerprint of everything read so far."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

_CHUNK_BYTES = 1 << 20


@runtime_checkable
class ByteStream(Protocol):
    """A binary file, as far as it is needed here."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...

    def readline(self, size: int, /) -> bytes:
        """Return the bytes up to and with the next end of line, at most ``size``."""
        ...


class LineReader:
    """Read a binary stream line by line and remember how far, and of what.

    Args:
        stream: Read from where it stands; need not be seekable.
        max_line_bytes: Of a longer line only so many bytes and one more are kept, so that who
            gets it can tell; the rest is read past.
    """

    def __init__(self, stream: ByteStream, *, max_line_bytes: int) -> None:
        self._stream, self._max = stream, max_line_bytes
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """Of all bytes read so far, in hexadecimal."""
        return self._digest.hexdigest()

    def skip(self, num_bytes: int) -> None:
        """Read past ``num_bytes``, or to the end of a shorter stream."""
        end = self.num_bytes + num_bytes
        while self.num_bytes < end and self._read(self._stream.read, end - self.num_bytes):
            pass

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines that are left; nothing is read ahead of what was yielded."""
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
