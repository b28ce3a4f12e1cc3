import hashlib
import http.server
import io
import shutil
import threading
import zipfile

import pytest
import requests

from sidrec.corpus.reading import download
from sidrec.corpus.reading.download import default_cache_folder, locate_movielens
from sidrec.errors import ConfigError, DataError, SidrecError


def _zip_bytes(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


EDITION = _zip_bytes({"ml-1m/ratings.dat": "1::2::5::9\n" * 50_000, "ml-1m/movies.dat": "2::A::B"})


class _Server(http.server.ThreadingHTTPServer):
    payload = EDITION
    break_off = 0  # so many GETs end in the middle
    requests: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    def _head(self):
        self.server.requests.append(f"{self.command} {self.path}")
        if not self.path.endswith("/ml-1m.zip"):
            self.send_error(404)
            return False
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.payload)))
        self.end_headers()
        return True

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        if self._head():
            cut = self.server.break_off > 0
            self.server.break_off -= 1
            size = len(self.server.payload)
            self.wfile.write(self.server.payload[: size // 2 if cut else size])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = _Server(("127.0.0.1", 0), _Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("SIDREC_MOVIELENS_URL", f"http://127.0.0.1:{server.server_port}/x/")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setitem(
        download.KNOWN_HASHES, "ml-1m", f"sha256:{hashlib.sha256(EDITION).hexdigest()}"
    )
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # no waiting between retries
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def no_network(monkeypatch):
    # Port 9 (discard) of this machine: refused at once.
    monkeypatch.setenv("SIDREC_MOVIELENS_URL", "http://127.0.0.1:9")


def test_a_name_is_downloaded_once_and_then_read_from_the_cache(tmp_path, server):
    folder = locate_movielens("ml-1m", cache_folder=tmp_path)
    assert folder == tmp_path / "movielens" / "ml-1m" / "ml-1m"
    assert (folder / "movies.dat").read_text() == "2::A::B"
    assert server.requests == ["HEAD /x/ml-1m.zip", "GET /x/ml-1m.zip"]
    assert locate_movielens("ml-1m", cache_folder=tmp_path) == folder
    assert len(server.requests) == 2


def test_a_download_that_breaks_off_is_tried_again(tmp_path, server):
    server.break_off = 2
    folder = locate_movielens("ml-1m", cache_folder=tmp_path)
    assert (folder / "ratings.dat").stat().st_size == 11 * 50_000
    assert server.requests.count("GET /x/ml-1m.zip") == 3


def test_a_download_that_never_ends_well_leaves_no_file(tmp_path, server):
    server.break_off = 99
    with pytest.raises(SidrecError, match="failed 4 times") as caught:
        locate_movielens("ml-1m", cache_folder=tmp_path)
    assert caught.value.exit_code == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.break_off = 0
    assert locate_movielens("ml-1m", cache_folder=tmp_path).name == "ml-1m"


def test_a_file_with_another_checksum_is_refused_and_not_kept(tmp_path, server):
    server.payload = _zip_bytes({"ml-1m/ratings.dat": "changed"})
    with pytest.raises(DataError, match="differs from the published file"):
        locate_movielens("ml-1m", cache_folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, server, monkeypatch):
    def no_space(self, num_bytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download._DownloadProgress, "update", no_space)
    with pytest.raises(SidrecError, match=r"No space left on device.* SIDREC_CACHE"):
        locate_movielens("ml-1m", cache_folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, server):
    locate_movielens("ml-1m", cache_folder=tmp_path)
    shutil.rmtree(tmp_path / "movielens" / "ml-1m")
    (tmp_path / "movielens" / "ml-1m.zip").write_bytes(EDITION[:1000])
    assert (locate_movielens("ml-1m", cache_folder=tmp_path) / "ratings.dat").exists()


def test_a_server_without_the_file_is_named_at_once(tmp_path, server):
    with pytest.raises(SidrecError, match=r"ml-25m.zip cannot be reached \(404\)"):
        locate_movielens("ml-25m", cache_folder=tmp_path)
    assert server.requests == ["HEAD /x/ml-25m.zip"]


def test_without_a_network_the_error_says_what_to_do(tmp_path, no_network):
    with pytest.raises(SidrecError, match="give its path as --source, or name a mirror") as caught:
        locate_movielens("ml-25m", cache_folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "movielens").exists()


def _fake_wheel(tmp_path, monkeypatch, *, pinned=True):
    data = _zip_bytes(dict.fromkeys(download.RECBOLE_MEMBERS, "item_id:token\n") | {"x": "y"})

    def fetch(folder):
        (folder / "recbole.whl").write_bytes(data)
        return folder / "recbole.whl"

    monkeypatch.setattr(download, "_fetch_wheel", fetch)
    if pinned:
        monkeypatch.setattr(download, "RECBOLE_SHA256", hashlib.sha256(data).hexdigest())


def test_ml_100k_falls_back_to_the_wheel_and_says_so(tmp_path, no_network, monkeypatch, capsys):
    _fake_wheel(tmp_path, monkeypatch)
    folder = locate_movielens("ml-100k", cache_folder=tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == ["ml-100k.inter", "ml-100k.item"]
    assert "taking ml-100k from the PyPI package recbole==1.2.1 instead" in capsys.readouterr().err
    monkeypatch.setattr(download, "_fetch_wheel", None)  # the second time nothing is fetched
    assert locate_movielens("ml-100k", cache_folder=tmp_path) == folder


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, no_network, monkeypatch):
    _fake_wheel(tmp_path, monkeypatch, pinned=False)
    with pytest.raises(DataError, match="expected 9c9948202011"):
        locate_movielens("ml-100k", cache_folder=tmp_path)
    assert not (tmp_path / "movielens").exists()


def test_pip_without_an_index_ends_in_one_line(tmp_path, no_network, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SidrecError, match=r"pip could not fetch recbole==1.2.1 \(") as caught:
        locate_movielens("ml-100k", cache_folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_checksum_is_not_papered_over_by_the_wheel(tmp_path, server, monkeypatch):
    def download_wrong(name, url, cache):
        raise DataError("checksum")

    monkeypatch.setattr(download, "_download", download_wrong)
    with pytest.raises(DataError, match="checksum"):
        locate_movielens("ml-100k", cache_folder=tmp_path)


def test_a_folder_is_taken_as_it_is_also_one_level_up(tmp_path):
    inner = tmp_path / "data" / "ml-latest-small"
    inner.mkdir(parents=True)
    (inner / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    assert locate_movielens(str(inner), cache_folder=tmp_path / "cache") == inner
    assert locate_movielens(str(tmp_path / "data"), cache_folder=tmp_path / "cache") == inner
    assert not (tmp_path / "cache").exists()


def test_a_zip_is_unpacked_once_and_again_when_it_changed(tmp_path):
    archive = tmp_path / "mine.zip"
    archive.write_bytes(EDITION)
    first = locate_movielens(str(archive), cache_folder=tmp_path / "cache")
    assert (first / "movies.dat").read_text() == "2::A::B"
    archive.write_bytes(_zip_bytes({"ratings.csv": "userId\n"}))
    second = locate_movielens(str(archive), cache_folder=tmp_path / "cache")
    assert (second / "ratings.csv").read_text() == "userId\n"
    assert second != first


def test_a_folder_without_ratings_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no MovieLens edition"):
        locate_movielens(str(tmp_path), cache_folder=tmp_path)


def test_two_editions_in_one_folder_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ratings.csv").touch()
    with pytest.raises(DataError, match="several editions"):
        locate_movielens(str(tmp_path), cache_folder=tmp_path)


def test_a_misspelt_name_lists_the_right_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"ml-100K is neither .* ml-100k, ml-latest-small"):
        locate_movielens("ml-100K", cache_folder=tmp_path)


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("SIDREC_CACHE")
    assert default_cache_folder().name == "sidrec"


def test_a_name_that_cannot_be_resolved_is_no_traceback(tmp_path, monkeypatch):
    def head(*args, **kwargs):
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(SidrecError, match=r"cannot be reached \(ConnectTimeout\)"):
        locate_movielens("ml-32m", cache_folder=tmp_path)
