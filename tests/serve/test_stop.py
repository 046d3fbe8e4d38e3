"""SIGTERM: what was asked is answered, what was answered is on the disk, half a body holds nothing up, exit code 0."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from live_server import answer, call, free_port, send
from sidera.engine.recommender import Recommender
from sidera.store.exposures import ExposureLog

EVENT = json.dumps({"user": "ann", "items": ["item0003", "item0004"], "times": [1, 2]}).encode()
ASK = b'{"user": "ann", "k": 5}'


@contextlib.contextmanager
def process(run: Path, folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    command = [sys.executable, "-m", "sidera", "serve", str(run), "--port", str(port), "--store", str(folder / "store")]
    started = subprocess.Popen(
        [*command, "--exposures", str(folder / "log"), "--grace-seconds", "2", *flags], text=True, env=dict(os.environ),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        for _ in range(600):
            assert started.poll() is None, started.stdout.read()  # type: ignore[union-attr]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            time.sleep(0.1)
        yield started, port
    finally:
        started.kill()
        started.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to send")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(trained_run: Path, tmp_path: Path, sent: signal.Signals) -> None:
    with process(trained_run, tmp_path) as (server, port):
        assert b"200 OK" in answer(send(port, call("/v1/events", EVENT)))[:20]
        half = send(port, call("/v1/events", EVENT, length=len(EVENT) + 7))
        header = send(port, b"POST /v1/recommend HTTP/1.1\r\n")
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(lambda: answer(send(port, call("/v1/recommend", ASK)))) for _ in range(24)]
            while sum(one.done() for one in asked) < 4:
                time.sleep(0.01)
            server.send_signal(sent)
            replies = []
            for one in asked:
                with contextlib.suppress(OSError):  # refused: the port is closed
                    replies.append(one.result())
        began = time.monotonic()
        assert server.wait(30) == 0, server.stdout.read()  # type: ignore[union-attr]
        assert time.monotonic() - began < 15
        assert answer(half)[:12] in (b"HTTP/1.1 503", b"HTTP/1.1 408", b"")
        assert answer(header) == b""
    answered = [json.loads(reply.split(b"\r\n\r\n", 1)[1]) for reply in replies if reply[:12] == b"HTTP/1.1 200"]
    assert len(answered) >= 4
    assert {reply[:12] for reply in replies} <= {b"HTTP/1.1 200", b"HTTP/1.1 503", b""}
    catalog = Recommender.load(trained_run).catalog
    log = ExposureLog.open(tmp_path / "log", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    logged = set(log.read()["request"].to_pylist())
    assert {one["request"] for one in answered} <= logged
