"""``sidrec serve``: a page and an endpoint on this machine, for trying and for showing."""

import socket
import threading
from typing import TYPE_CHECKING

from sidrec.cli.parser import CommandParser
from sidrec.console import say
from sidrec.errors import ConfigError, one_line
from sidrec.runs.preemption import STOP, Preempted

if TYPE_CHECKING:
    from uvicorn import Server

_LOCAL = ("127.0.0.1", "localhost", "::1")


def main(args: list[str]) -> None:
    """Run ``sidrec serve`` with the words after the command's name."""
    parser = CommandParser(
        prog="sidrec serve",
        description="A page and an endpoint for trying and for showing: POST the lines of `sidrec "
        "retrieve` to /retrieve and get its lines. For throughput use `sidrec retrieve`.",
        source="Run directory of a generator.",
        source_required=True,
    )
    parser.add_argument("--ids", type=str | None, help="Bundle with items appended after training.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8000, help="Port; 0 takes a free one.")
    parser.add_argument("--top_k", type=int, default=30, help="Items per answer.")
    parser.add_argument("--batch_size", type=int, default=64, help="Requests decoded together.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    given = parser.parse_args(args)
    if min(given.top_k, given.batch_size) < 1:
        raise ConfigError("--top_k and --batch_size must be at least 1.")
    if not 0 <= given.port < 1 << 16:
        raise ConfigError(f"--port must be 0 to 65535, got {given.port}.")
    from uvicorn import Config, Server

    with _listening(given.host, given.port) as listener:  # before the slow part
        from sidrec.generator.retrieval.retriever import Retriever
        from sidrec.generator.serving.answer_queue import AnswerQueue
        from sidrec.generator.serving.web_app import web_app

        retriever = Retriever.load(given["from"], device=given.device, semantic_ids=given.ids)
        queue = AnswerQueue(retriever, top_k=given.top_k, batch_size=given.batch_size)
        hosts = [*_LOCAL, "[::1]"] if given.host in _LOCAL else ["*"]
        app = web_app(queue, run=given["from"], hosts=hosts)
        server = Server(Config(app, lifespan="off", log_level="warning", server_header=False))
        place = f"[{given.host}]" if ":" in given.host else given.host
        say(
            f"serving {given['from']} on http://{place}:{listener.getsockname()[1]}, for trying "
            "and for showing; Ctrl-C ends it"
        )
        _serve(server, listener)
    say("every request is answered, ended")


def _listening(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: If the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        raise ConfigError(
            f"--host {host} --port {port}: {reason}; give another --port, or 0 for a free one."
        ) from None


def _serve(server: "Server", listener: socket.socket) -> None:
    """Serve until a signal comes, then until every request in flight is answered."""
    ended = threading.Event()  # Python 3.11's join takes a thread for ended after an interruption

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        ended.wait()
    except (Preempted, KeyboardInterrupt):
        STOP.wait_for_step()  # a long answer is no stuck process
        server.should_exit = True
        ended.wait()
