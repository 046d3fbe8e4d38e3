"""The server process: a port, uvicorn on it, and an end in good order.

SIGTERM and Ctrl-C stop it: no new connection, ``/readyz`` says no, what was asked is answered, and after the grace time
what is still on its way is cut. A second Ctrl-C cuts at once. The caller then closes store and exposure log.

Trap: uvicorn raises the signal that stopped it once more, after its end. A process whose SIGTERM kills would die there
before its store is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

import uvicorn
from fastapi import FastAPI

from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.ops.allocator import release_memory
from sidera.serve.app import create_app
from sidera.serve.config import HttpConfig
from sidera.serve.health import exposition
from sidera.serve.keys import KeyFile
from sidera.serve.protocol import protocol_for, sweep
from sidera.serve.state import Served
from sidera.serve.tracing import Tracer
from sidera.serve.worker import BACKLOG, WRITTEN_EVERY, Worker

SWITCH_SECONDS = 0.0005  # a thread that computes gives way to the event loop after so long, not after 5 ms
QUIET_SECONDS = 5.0  # without a request: memory of the last rush goes back to the system
SPARE_FILES = 256  # file handles beside those of connections
ACCEPTS = 32  # connections that are accepted in one turn of the event loop


class Server(uvicorn.Server):
    """uvicorn with the sweep of slow connections and an own way to stop."""

    def __init__(self, config: uvicorn.Config, served: Served) -> None:
        super().__init__(config)
        self.served = served

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvloop accepts one connection of a listening socket in a turn: behind a burst of thousands others would wait
        for seconds. So it gets the socket several times."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for listener in [one for server in self.servers for one in server.sockets]:
            for _ in range(ACCEPTS - 1):
                self.servers.append(await loop.create_server(self._connection, sock=listener.dup(), backlog=BACKLOG))

    def _connection(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def main_loop(self) -> None:
        # the sweep goes on while what is under way ends; the loop alone would let it be collected
        self.sweeping = asyncio.create_task(sweep(self.server_state.connections))  # type: ignore[arg-type]
        tasks = [asyncio.create_task(self._tidy())]
        if self.served.worker is not None:
            tasks.append(asyncio.create_task(self._leave_figures(self.served.worker)))
        try:
            await super().main_loop()
        finally:
            self.served.stopping = True
            for task in tasks:
                task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.served.stopping = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def _tidy(self) -> None:
        """Give memory back once after every rush."""
        done = 0
        while True:
            before = self.server_state.total_requests
            await asyncio.sleep(QUIET_SECONDS)
            if before == self.server_state.total_requests != done:
                done = before
                await asyncio.to_thread(release_memory)

    async def _leave_figures(self, worker: Worker) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk: the next figures may find room
                await asyncio.to_thread(worker.write, exposition(self.served))
            await asyncio.sleep(WRITTEN_EVERY)


def serve(
    recommender: Recommender,
    address: tuple[str, int] | socket.socket = ("127.0.0.1", 8000),
    config: HttpConfig | None = None,
    keys: KeyFile | None = None,
    log: TextIO | None = None,
    worker: Worker | None = None,
    tracer: Tracer | None = None,
) -> None:
    """Run until SIGTERM or Ctrl-C, at an address or on a socket that listens; InputError when the port is taken."""
    listener = address if isinstance(address, socket.socket) else None
    host, port = address.getsockname()[:2] if isinstance(address, socket.socket) else address
    if listener is None:
        check_port(host, port)
    served = Served(recommender, config or HttpConfig(), keys, worker=worker, tracer=tracer)
    app = create_app(recommender, served=served, log=log)
    served.asker.scheduler.warm_up()
    keep_out_of_collections()
    with quick_switches(), enough_files(served.config.max_connections):
        Server(uvicorn_config(app, served, host, port), served).run(None if listener is None else [listener])


def uvicorn_config(app: FastAPI, served: Served, host: str, port: int) -> uvicorn.Config:
    config: dict[str, Any] = {
        "host": host, "port": port, "http": protocol_for(served), "ws": "none", "lifespan": "on",
        "log_level": "critical" if sys.flags.quiet else "warning", "access_log": False, "server_header": False,
        "backlog": BACKLOG, "timeout_keep_alive": served.config.keep_alive_seconds,
        "timeout_graceful_shutdown": served.config.grace_seconds,
    }  # fmt: skip
    return uvicorn.Config(app, **config)


def keep_out_of_collections() -> None:
    """What is there when the first request comes stays for good. To look through it again and again, which a full
    collection does, would stop all threads for a tenth of a second and more."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def enough_files(connections: int) -> Iterator[None]:
    """InputError when this process may not open so many connections."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        problem = f"{connections} connections need {needed} open files, and this process may open {hard}"
        raise InputError(problem, fix="raise the limit (ulimit -n), or lower --max-connections")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_port(host: str, port: int) -> None:
    """InputError when nobody can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise InputError(f"--port {port} is no port", allowed="0 to 65535") from None
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror}", fix="choose a free port with --port"
            ) from None
