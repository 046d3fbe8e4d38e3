"""A server that listens, on a thread of the test's own process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from sidera.engine.recommender import Recommender
from sidera.serve.app import create_app
from sidera.serve.config import HttpConfig
from sidera.serve.server import Server, uvicorn_config
from sidera.serve.state import Served


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def listening(recommender: Recommender, config: HttpConfig) -> Iterator[tuple[int, Served]]:
    """The port, and the state of the application behind it."""
    served, port = Served(recommender, config), free_port()
    app = create_app(recommender, served=served)
    server = Server(uvicorn_config(app, served, "127.0.0.1", port), served)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port, served
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def send(port: int, content: bytes, seconds: float = 30.0) -> socket.socket:
    """A connection on which ``content`` was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=seconds)
    connection.sendall(content)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def one_answer(connection: socket.socket) -> bytes:
    """One answer, whole, of a connection that is kept: its head and its body may come in any number of pieces."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += _more(connection, got)
    head = got[: got.index(b"\r\n\r\n") + 4]
    lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    while len(got) < len(head) + int(lengths[0]):
        got += _more(connection, got)
    assert len(got) == len(head) + int(lengths[0]), got
    return got


def _more(connection: socket.socket, got: bytes) -> bytes:
    part = connection.recv(65_536)
    assert part, f"closed after {got!r}"
    return part


def until(condition: Callable[[], object]) -> None:
    """Within half a minute."""
    stop = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.02)


def call(path: str, body: bytes, length: int | None = None, more: str = "") -> bytes:
    """A POST as it goes over the wire; ``length``: what it says of itself."""
    said = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {said}\r\nconnection: close\r\n{more}\r\n"
    return head.encode() + body
