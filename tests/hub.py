"""A model hub on this machine: folders under their hub names, answered for as the real one does."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

REVISION = "5ed" + "0" * 37  # of every model: a commit's hash has 40 digits


@contextmanager
def serve(models: dict[str, Path]) -> Iterator["Hub"]:
    """Answer for so many models until the block ends."""
    hub = Hub(models)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Hub(http.server.ThreadingHTTPServer):
    """The server.

    Args:
        models: Folders by hub name.
    """

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.fetched: list[str] = []  # MODEL/FILE of every file that was handed out

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables with which a process asks this hub and keeps what it gets in ``cache``."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        for name, folder in self.server.models.items():
            if path.startswith(f"api/models/{name}"):
                self._send(_facts(name, folder, path), {}, with_body)
                return
            before = next(
                (
                    p
                    for p in (f"{name}/resolve/main/", f"{name}/resolve/{REVISION}/")
                    if path.startswith(p)
                ),
                None,
            )
            if before:
                self._file(
                    folder / path.removeprefix(before),
                    f"{name}/{path.removeprefix(before)}",
                    with_body,
                )
                return
        self._missing("RepoNotFound")

    def _file(self, file: Path, shown: str, with_body: bool) -> None:
        if not file.is_file():
            self._missing("EntryNotFound")
            return
        if with_body:
            self.server.fetched.append(shown)
        content = file.read_bytes()
        headers = {"ETag": f'"{sha1(content, usedforsecurity=False).hexdigest()}"'}
        self._send(content, headers, with_body)

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for key, value in (headers | {"X-Repo-Commit": REVISION}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _facts(name: str, folder: Path, path: str) -> bytes:
    """Return what the hub's API says of a model: its files, or itself."""
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    if "/tree/" in path:
        listed = [{"type": "file", "path": str(f), "size": 0, "oid": "0" * 40} for f in files]
        return json.dumps(listed).encode()
    siblings = [{"rfilename": str(file)} for file in files]
    return json.dumps({"id": name, "sha": REVISION, "siblings": siblings, "tags": []}).encode()
