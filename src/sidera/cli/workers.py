"""``sidera serve --workers N``: starts the processes that serve, starts a dead one again, and ends them in good order.

The parent binds the port and hands sockets on; it answers nothing itself. On Linux each worker has a socket of its own
and the system shares connections out (SO_REUSEPORT): of one socket, whoever wakes first would take a whole burst, and
clients that keep their connections would leave the others idle. Elsewhere all accept from one. The first worker is
ready before the others start: what a new store is filled with is written once. SIGTERM or Ctrl-C closes the sockets
here and is passed on, so every worker answers what it took. A worker whose parent was killed stops by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.running import run_verb
from sidera.core import InputError
from sidera.serve.worker import BACKLOG, Worker

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

MOST_FAILURES = 3  # starts in a row that did not come up
CLOSING = 10.0  # seconds beside the grace time, for the store
Work = Callable[[argparse.Namespace, socket.socket, Worker], None]
BAD_INPUT = 2  # exit code; the worker has said what is wrong


def serve_with_workers(arguments: argparse.Namespace) -> None:
    """Until SIGTERM or Ctrl-C. InputError where the workers cannot come up."""
    if sys.platform == "win32":
        raise InputError("--workers needs a listening socket that several processes share", fix="leave it out")
    with tempfile.TemporaryDirectory(prefix="sidera-workers-") as folder, bound(arguments) as listeners:
        Workers(arguments, listeners, Path(folder)).run()


class Workers:
    """The processes, and a pipe that a signal wakes the parent through."""

    def __init__(
        self, arguments: argparse.Namespace, listeners: Sequence[socket.socket], folder: Path, work: Work | None = None
    ) -> None:
        """``listeners``: one for each worker, or one for all."""
        self.arguments, self.listeners, self.work = arguments, listeners, work or serve_as
        self.places = [Worker(number, arguments.workers, folder) for number in range(arguments.workers)]
        self.processes: dict[int, BaseProcess] = {}
        self.failures = 0
        self.stopping = False
        self._awake, self._wake = os.pipe()

    def run(self) -> None:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._start(self.places[0])
            while not self.stopping and not self.places[0].file.exists():
                self._look(0.05)
            for place in self.places[1:]:
                if not self.stopping:
                    self._start(place)
            while not self.stopping:
                self._look(None)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, place: Worker) -> None:
        from multiprocessing import get_context  # where a system lacks it, a server of one process needs none

        context = get_context("spawn")
        place.file.unlink(missing_ok=True)
        process = context.Process(
            target=self.work, args=(self.arguments, self._listener_of(place.number), place),
            name=f"worker-{place.number}",
        )  # fmt: skip
        process.start()
        self.processes[place.number] = process

    def _listener_of(self, number: int) -> socket.socket:
        return self.listeners[number % len(self.listeners)]

    def _look(self, seconds: float | None) -> None:
        """Wait for the end of a worker or a signal, and start what has ended again."""
        from multiprocessing.connection import wait

        wait([self._awake, *(process.sentinel for process in self.processes.values())], seconds)
        for number, process in list(self.processes.items()):
            if process.is_alive() or self.stopping:
                continue
            came_up = self.places[number].file.exists()
            self.failures = 0 if came_up else self.failures + 1
            if process.exitcode == BAD_INPUT and not came_up:
                raise InputError(f"worker {number} did not start", fix="what is wrong stands above")
            if self.failures >= MOST_FAILURES:
                problem = f"worker {number} ended {MOST_FAILURES} times before it answered (code {process.exitcode})"
                raise InputError(problem, fix="serve without --workers to see why")
            console.warn(f"worker {number} ended with code {process.exitcode} and is started again")
            self._leave_to_others(number)
            self._start(self.places[number])

    def _leave_to_others(self, number: int) -> None:
        """Nobody waits for a dead worker where another answers: its socket listens no more until it does again."""
        answer = any(other.is_alive() and self.places[place].file.exists() for place, other in self.processes.items())
        if len(self.listeners) > 1 and answer:
            with contextlib.suppress(OSError):  # it did not listen yet
                self._listener_of(number).shutdown(socket.SHUT_RDWR)

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        os.write(self._wake, b"x")

    def _end(self) -> None:
        """Nobody new is let in; every worker answers what it took, within the grace time, and closes its store."""
        for listener in self.listeners:
            listener.close()
        for process in self.processes.values():
            with contextlib.suppress(OSError, ValueError):
                process.terminate()
        end = time.monotonic() + self.arguments.grace_seconds + CLOSING
        for process in self.processes.values():
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def serve_as(arguments: argparse.Namespace, listener: socket.socket, place: Worker) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal: the parent passes SIGTERM on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    arguments.worker, arguments.listener = place, listener
    sys.exit(run_verb(arguments))


def _end_with_parent() -> None:
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent: Any = parent_process()
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def bound(arguments: argparse.Namespace) -> Iterator[list[socket.socket]]:
    """Sockets of the port, of which the first listens; the others do when their worker does. InputError when nobody can
    listen there."""
    from sidera.serve.server import check_port

    check_port(arguments.host, arguments.port)
    shared, port = sys.platform != "linux", arguments.port
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        listeners = list[socket.socket]()
        for _ in range(1 if shared else arguments.workers):
            listener = opened.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((arguments.host, port))
            port = listener.getsockname()[1]
            listeners.append(listener)
        listeners[0].listen(BACKLOG)
        yield listeners
