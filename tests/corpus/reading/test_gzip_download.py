import gzip
import http.server
import threading

import pytest

from sidrec.corpus.reading.gzip_download import fetch_gzip
from sidrec.corpus.sources import amazon_files
from sidrec.errors import DataError, SidrecError

LINES = gzip.compress(b'{"asin": "B0"}\n' * 20_000, compresslevel=0)


class _RangeHandler(http.server.BaseHTTPRequestHandler):
    """A server of one gzipped file that can break off, and knows byte ranges."""

    def do_GET(self):
        server = self.server
        first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        server.requests.append(first)
        if self.path != "/x/Beauty.json.gz":
            self.send_error(404)
            return
        body = server.payload[first:]
        self.send_response(206 if server.ranges else 200)
        body = body if server.ranges else server.payload
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.break_off > 0
        server.break_off -= 1
        self.wfile.write(body[: len(body) // 2 if cut else len(body)])

    def log_message(self, *args):
        pass


@pytest.fixture
def files(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _RangeHandler)
    server.payload, server.requests, server.ranges, server.break_off = LINES, [], True, 0
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server.url = f"http://127.0.0.1:{server.server_port}/x/Beauty.json.gz"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_resumes(files, tmp_path, capsys, ranges):
    files.break_off, files.ranges = 1, ranges
    target = tmp_path / "Beauty.json.gz"
    fetch_gzip(files.url, target, mirror="MIRROR")
    fetch_gzip(files.url, target, mirror="MIRROR")  # is there: asks nobody
    assert target.read_bytes() == LINES
    assert files.requests[0] == 0
    assert 0 < files.requests[1] < len(LINES)
    assert len(files.requests) == 2
    assert f"{len(LINES):,} bytes; size and gzip checksum are right" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["Beauty.json.gz"]


def test_what_was_received_is_kept_for_the_next_command(files, tmp_path):
    files.break_off = 10
    target = tmp_path / "Beauty.json.gz"
    with pytest.raises(SidrecError, match="run the command again to resume, name a mirror in MIR"):
        fetch_gzip(files.url, target, mirror="MIRROR")
    assert not target.exists()
    files.break_off = 0
    fetch_gzip(files.url, target, mirror="MIRROR")
    assert target.read_bytes() == LINES
    assert files.requests[-1] > len(LINES) // 2


def test_a_damaged_download_is_not_kept(files, tmp_path):
    files.payload = LINES[:-8] + bytes(8)  # the checksum in gzip's trailer
    with pytest.raises(DataError, match="is damaged after download"):
        fetch_gzip(files.url, tmp_path / "Beauty.json.gz", mirror="MIRROR")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_server_lacks_is_named(files, tmp_path):
    with pytest.raises(SidrecError, match="the server answered 404"):
        fetch_gzip(files.url.replace("Beauty", "Baby"), tmp_path / "Baby.json.gz", mirror="MIRROR")


def test_a_category_is_downloaded_and_cached(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_AMAZON_URL", files.url.rsplit("/", 1)[0])
    monkeypatch.setitem(amazon_files._FILES, 2014, ("{}.json.gz", "{}.json.gz"))
    found = amazon_files.locate_amazon("Beauty", 2014, cache_folder=tmp_path)
    assert found.reviews == tmp_path / "amazon" / "2014" / "Beauty.json.gz"
    assert found.meta.read_bytes() == LINES
