"""Zip archives from untrusted sources, unpacked safely."""

import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from sidrec.errors import DataError
from sidrec.files import atomic_folder

_CHUNK_BYTES = 1 << 20
_ALWAYS_ALLOWED_BYTES = 1 << 20  # unpacked size up to which no ratio is too high


def extract(
    archive: Path,
    folder: Path,
    *,
    max_total_bytes: int,
    max_files: int,
    max_ratio: float,
    members: Collection[str] | None = None,
) -> list[Path]:
    """Unpack a zip (a wheel is one too) into ``folder``, all of it or nothing.

    All members are checked before the first byte is written, and the sizes that the archive states
    are enforced while writing. ``folder`` is replaced when it exists.

    Args:
        archive: The zip file.
        folder: Folder to create: complete when the call returns, unchanged when it raises.
        max_total_bytes: Limit of the unpacked size, in bytes.
        max_files: Limit of the number of files.
        max_ratio: Limit of unpacked size over packed size, unitless; archives that unpack to at
            most one MiB are exempt.
        members: Names to unpack; ``None`` unpacks all.

    Returns:
        The files, in the archive's order.

    Raises:
        DataError: If the archive is damaged or not a zip, holds a link, a path that leads out of
            the folder or the same name twice, is larger than allowed, or lacks a member.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            chosen = _choose(opened, archive, members)
            _check_size(chosen, archive, max_total_bytes, max_files, max_ratio)
            with atomic_folder(folder) as temporary:
                for info in chosen:
                    _write(opened, info, temporary / info.filename)
    except FileNotFoundError:
        raise DataError(f"{archive} does not exist; check the path.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}; it is damaged, truncated or not a zip: "
            "download it again."
        ) from None
    except OSError as error:
        raise DataError(
            f"{archive} could not be unpacked to {folder}: {error}; check the disk and the archive."
        ) from None
    return [folder / info.filename for info in chosen]


def _choose(
    opened: zipfile.ZipFile, archive: Path, members: Collection[str] | None
) -> list[zipfile.ZipInfo]:
    chosen = [info for info in opened.infolist() if not info.is_dir()]
    if members is not None:
        missing = sorted(set(members) - {info.filename for info in chosen})
        if missing:
            raise DataError(f"{archive} lacks {missing[0]}; check that it is the right archive.")
        chosen = [info for info in chosen if info.filename in members]
    seen: set[str] = set()
    for info in chosen:
        problem = _problem_of(info)
        if info.filename in seen:
            problem = "occurs twice"
        if problem:
            raise DataError(
                f"{archive}: member {info.filename!r} {problem}; refused, nothing was unpacked."
            )
        seen.add(info.filename)
    return chosen


def _problem_of(info: zipfile.ZipInfo) -> str:
    name = info.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        return "would be written outside its folder"
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or a device"
    return ""


def _check_size(
    chosen: list[zipfile.ZipInfo],
    archive: Path,
    max_total_bytes: int,
    max_files: int,
    max_ratio: float,
) -> None:
    if len(chosen) > max_files:
        raise DataError(
            f"{archive} holds {len(chosen):,} files, at most {max_files:,} are allowed; refused."
        )
    unpacked = sum(info.file_size for info in chosen)
    if unpacked > max_total_bytes:
        raise DataError(
            f"{archive} unpacks to {unpacked:,} bytes, at most {max_total_bytes:,} are allowed; "
            "refused."
        )
    packed = max(1, sum(info.compress_size for info in chosen))
    if unpacked > _ALWAYS_ALLOWED_BYTES and unpacked / packed > max_ratio:
        raise DataError(
            f"{archive} unpacks to {unpacked / packed:,.0f} times its size, at most "
            f"{max_ratio:,.0f} times are allowed; refused as a zip bomb."
        )


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    # ZipFile stops a member at the size that its header states, so the checked sizes hold.
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(info) as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK_BYTES)
