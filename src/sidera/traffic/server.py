"""A server of one run folder, as a process of its own: started, watched, and ended whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidera.core import InputError
from sidera.traffic.requests import Address, ask_json

START_SECONDS = 120.0
STOP_SECONDS = 10.0
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


@dataclass
class Server:
    """A running ``sidera serve``."""

    process: subprocess.Popen[bytes]
    address: Address

    @property
    def rss(self) -> int:
        """Resident bytes of the process and its children; 0 where there is no /proc."""
        return resident_bytes(self.process.pid)

    @property
    def cpu_seconds(self) -> float:
        """Of the process and its children; 0 where there is no /proc."""
        return sum(map(_cpu_seconds, [self.process.pid, *_children(self.process.pid)]))

    def stop(self) -> int:
        """SIGTERM, then SIGKILL; -> its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    run: str | Path, flags: Sequence[str] = (), *, environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
) -> Iterator[Server]:  # fmt: skip
    """``sidera serve RUN --port FREE FLAGS`` until the block ends; InputError with its last words when it cannot start.

    ``environment`` replaces the process's; ``command`` replaces ``python -m sidera serve RUN`` (another server that
    takes ``--port`` and answers /healthz).
    """
    port = free_port()
    words = [*(command or (sys.executable, "-m", "sidera", "serve", str(run))), "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        server = Server(process, Address("127.0.0.1", port, ""))
        try:
            if not _wait_until_up(server):
                server.stop()
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()[-1:]
                raise InputError(f"the server of {run} does not come up: {' '.join(said) or 'it says nothing'}")
            yield server
        finally:
            server.stop()


def _wait_until_up(server: Server) -> bool:
    end = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(InputError):
            ask_json(server.address, "GET", "/healthz")
            return True
        time.sleep(0.1)
    return False


def _die_with_parent() -> None:
    """A load that is killed leaves no server behind (Linux)."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="utf-8").split())
    return found + [one for child in found for one in _children(child)]


def resident_bytes(pid: int) -> int:
    """Of a process and its children; 0 where there is no /proc."""
    return sum(map(_rss, [pid, *_children(pid)]))


def _rss(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
