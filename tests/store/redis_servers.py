"""A Redis server of a test's own: started on a free port with its own folder, killed and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

MISSING = shutil.which("redis-server") is None
needs_redis = pytest.mark.skipif(MISSING, reason="no redis-server here: apt-get install redis-server")


class RedisServer:
    """Append-only and synced at every write, unless ``settings`` say otherwise."""

    def __init__(self, folder: Path, *settings: str) -> None:
        pytest.importorskip("redis", reason="no package redis here: pip install redis")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.process = subprocess.Popen([*command, *durable, *self.settings], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(5) == b"+PONG":
                        return
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
