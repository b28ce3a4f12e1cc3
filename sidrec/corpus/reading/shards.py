"""Tables in several files, local or in an object store."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sidrec.console import say
from sidrec.errors import ConfigError, DataError, SidrecError
from sidrec.files import disk_errors

_WILD = "*?["
_ADVICE = "free space or choose another --out: shards are fetched to its disk."


class Shards(NamedTuple):
    """Table in one or more local files.

    Attributes:
        name: Table as the user named it, for messages.
        files: Files in the order of their rows.
    """

    name: str
    files: list[Path]


@contextmanager
def local_shards(places: str | Sequence[str], *, near: Path) -> Iterator[Shards]:
    """Yield the files of a table in the order of their names; remote files are fetched.

    The builder reads interactions more than once, so each remote file is fetched once and removed
    at the end.

    Args:
        places: Files; each is a path, a pattern such as ``logs/*.parquet``, or an address with a
            scheme that fsspec knows (``s3://bucket/logs/*.parquet``, ``gs://…``, ``file://…``).
        near: Folder beside which a temporary folder holds the fetched files.

    Raises:
        DataError: If no file matches.
        ConfigError: If the scheme is unknown, or its package is not installed.
        SidrecError: If the store cannot be read.
    """
    places = [places] if isinstance(places, str) else places
    with ExitStack() as stack:
        parts = [stack.enter_context(_shards_of(place, near=near)) for place in places]
        yield Shards(", ".join(places), [file for part in parts for file in part.files])


@contextmanager
def _shards_of(place: str, *, near: Path) -> Iterator[Shards]:
    if Path(place).exists():
        yield Shards(place, _here(place))
        return
    if "://" not in place:
        yield Shards(place, _here(place))
        return
    system, path = _system_of(place)
    with _asking(place):
        wild = set(_WILD) & set(path) and not system.isfile(path)
        files = sorted(system.glob(path)) if wild else [path]
        files = [file for file in files if system.isfile(file)]
    if not files:
        raise DataError(f"{place} names no file; check the address and the pattern.")
    if _is_local(system):
        yield Shards(place, [Path(file) for file in files])
        return
    with disk_errors(near, _ADVICE):
        near.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{near.name}.", suffix=".part", dir=near.parent) as scratch:
        fetched = [
            _fetched(system, file, Path(scratch), number, place)
            for number, file in enumerate(files)
        ]
        yield Shards(place, fetched)


def _here(place: str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        raise DataError(f"{place} is a folder; name its files, e.g. {path / '*.parquet'}.")
    if path.is_file() or not set(_WILD) & set(place):
        return [path]
    found = sorted(Path(file) for file in glob(place, recursive=True) if Path(file).is_file())  # noqa: PTH207
    if not found:
        raise DataError(f"{place} names no file; check the folder and the pattern.")
    return found


def _system_of(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme = place.split("://", 1)[0]
    try:
        system, path = url_to_fs(place)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs a package that is not installed ({error}); install it, or copy the "
            "files here."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{place}: fsspec knows no scheme '{scheme}' ({error}); give a path, or another one."
        ) from None
    return system, str(path)


@contextmanager
def _asking(place: str) -> Iterator[None]:
    try:
        yield
    except SidrecError:
        raise
    except Exception as error:  # every store raises its own errors
        raise SidrecError(
            f"{place} cannot be read ({type(error).__name__}: {error}); check the address, the "
            "network and the credentials."
        ) from None


def _is_local(system: Any) -> bool:  # noqa: ANN401
    schemes = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    return "file" in schemes


def _fetched(system: Any, file: str, scratch: Path, number: int, place: str) -> Path:  # noqa: ANN401
    target = scratch / f"{number:06d}-{Path(file).name}"
    say(f"fetching {file}")
    with disk_errors(target, _ADVICE), _asking(place):
        system.get_file(file, str(target))
    return target
