"""A full or locked disk, said in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.errors import SidrecError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)  # ENOENT: no folder in /proc


@contextmanager
def disk_errors(target: Path, advice: str) -> Iterator[None]:
    """Turn what the system says about a disk into an error that names ``target``.

    Raises:
        SidrecError: If the block ran into a full, locked or read-only disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL + _LOCKED:
            raise
        raise SidrecError(f"{target} cannot be written: {error.strerror}; {advice}") from None
