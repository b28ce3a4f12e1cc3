"""Gzip downloads without a published checksum: resumable, checked by content."""

import gzip
import zlib
from pathlib import Path

from sidrec.console import say
from sidrec.corpus.reading.download import _DownloadProgress  # same lines as for MovieLens
from sidrec.errors import DataError, SidrecError
from sidrec.files import disk_errors

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
_RETRIES = 3


def fetch_gzip(address: str, target: Path, *, mirror: str) -> None:
    """Download a gzipped file unless it is there; an interrupted download resumes.

    The file gets its name only when its size is the one that the server states and the checksum
    inside the gzip stream agrees. Use it for publishers that state no checksum.

    Args:
        address: Address of the file.
        target: Path of the downloaded file.
        mirror: Environment variable that names a mirror, for messages.

    Raises:
        DataError: If the downloaded file is damaged; it is removed.
        SidrecError: If the server cannot be reached, or interrupts the download too often.
    """
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    with disk_errors(target.parent, "free space, or name another folder in SIDREC_CACHE."):
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(address, part, mirror=mirror)
    try:
        with gzip.open(part) as stream:
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        part.unlink()
        raise DataError(
            f"{address} is damaged after download ({error}); nothing was kept: run the command "
            f"again, or name a mirror in {mirror}."
        ) from None
    part.replace(target)
    say(
        f"{target.name}: {target.stat().st_size:,} bytes; size and gzip checksum are right; no "
        "other checksum is published"
    )


def _receive(address: str, part: Path, *, mirror: str) -> None:
    """Append the missing bytes to ``part`` until it has the size that the server states."""
    import requests
    import urllib3

    reason = ""
    for _ in range(_RETRIES + 1):
        done = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={done}-"}
        timeout = (_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
        try:
            with requests.get(address, headers=headers, stream=True, timeout=timeout) as response:
                if response.status_code == requests.codes.requested_range_not_satisfiable and done:
                    return  # nothing is missing; the checksum decides whether the file is valid
                response.raise_for_status()
                resumed = response.status_code == requests.codes.partial_content
                progress = _DownloadProgress(part.stem)
                size = int(response.headers.get("Content-Length", 0))
                progress.total = size + (done if resumed else 0)
                with part.open("ab" if resumed else "wb") as stream:
                    for chunk in response.raw.stream(1 << 18, decode_content=False):
                        stream.write(chunk)
                        progress.update(len(chunk))
                if not progress.total or part.stat().st_size == progress.total:
                    return
                reason = f"{part.stat().st_size:,} of {progress.total:,} bytes arrived"
        except requests.HTTPError as error:
            reason = f"the server answered {error.response.status_code}"
            break
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = type(error).__name__
    raise SidrecError(
        f"{address} cannot be downloaded ({reason}); run the command again to resume, name a "
        f"mirror in {mirror}, or fetch the files by hand and give their folder as --source."
    )
