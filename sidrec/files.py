"""Atomic writes of files and folders, and hashes of their content."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidrec.errors import DataError, SidrecError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)  # ENOENT: no folder in /proc
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)  # a file stands where a folder is needed


@contextmanager
def disk_errors(target: Path, advice: str) -> Iterator[None]:
    """Convert operating-system errors of a disk to an error that names ``target``.

    Raises:
        SidrecError: If the block meets a full, locked or read-only disk, or a file for a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL + _LOCKED + _NO_FOLDER:
            raise
        raise SidrecError(f"{target} cannot be written: {error.strerror}; {advice}") from None


_CHUNK_BYTES = 1 << 20
_UMASK_LOCK = threading.Lock()


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it there when the block succeeds.

    The file is flushed to disk before the rename. When the block raises, the temporary file is
    removed and ``target`` keeps its old content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, first_wins: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that replaces it when the block succeeds.

    When the block raises, the temporary folder is removed and ``target`` keeps its old content.

    Args:
        target: Folder to write.
        first_wins: Keep a ``target`` that another process has written meanwhile, which may already
            be open, and discard this one. For content that is the same whoever writes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _flush(file)
        if first_wins:
            _move_unless_there(temporary, target)
        elif target.exists():
            old = Path(
                tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)
            )
            target.replace(old / "old")
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(target: Path, content: Any) -> None:  # noqa: ANN401
    """Write ``content`` as indented JSON, atomically; keys keep their order."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(source: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file.

    Raises:
        DataError: If the file is missing or is not JSON; names the line.
    """
    try:
        return json.loads(source.read_text())
    except FileNotFoundError:
        raise DataError(f"{source} does not exist; check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not valid JSON: {error}; write it again.") from None


def sha256_of_file(source: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _move_unless_there(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)  # fails where the target is a folder with files
    except OSError:
        if not target.is_dir():
            raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    with _UMASK_LOCK:  # it belongs to the process: two threads here could leave it at 0
        mask = os.umask(0)
        os.umask(mask)
        return mask
