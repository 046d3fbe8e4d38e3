"""Several processes behind one port: one store, one catalogue, figures of all, an end without losses."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_workers import cannot, dies_once
from test_stop import process

from live_server import answer, call, send
from sidera.cli import main
from sidera.cli.workers import Work, Workers
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.serve.config import HttpConfig
from sidera.serve.worker import Worker, merged
from sidera.store.exposures import ExposureLog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at its children in /proc")


def test_figures_of_all_stand_by_family() -> None:
    one = '# TYPE a counter\na{path="/x"} 1\n# HELP b text\n# TYPE b gauge\nb 2\n'
    both = merged({0: one, 1: one.replace(" 1\n", " 5\n")})
    assert both.splitlines() == [
        "# TYPE a counter", 'a{worker="0",path="/x"} 1', 'a{worker="1",path="/x"} 5',
        "# HELP b text", "# TYPE b gauge", 'b{worker="0"} 2', 'b{worker="1"} 2',
    ]  # fmt: skip


def test_figures_of_a_worker_that_starts_again_are_missing(tmp_path: Path) -> None:
    (tmp_path / "1.prom").symlink_to(tmp_path / "gone")  # as if it went between two looks
    (tmp_path / "2.prom").write_text("# TYPE a counter\na 2\n")
    lines = Worker(0, 3, tmp_path).figures("# TYPE a counter\na 1\n").splitlines()
    assert lines == ["# TYPE a counter", 'a{worker="0"} 1', 'a{worker="2"} 2']


def test_limits_are_shared_and_one_body_always_fits(tmp_path: Path) -> None:
    share = Worker(1, 8, tmp_path).share(HttpConfig(max_body_mb=8, bodies_mb=32, max_connections=100))
    assert (share.bodies_mb, share.max_connections) == (8, 12)


@pytest.mark.parametrize("count", ["0", "x", "257"])
def test_a_wrong_number_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "run", "--workers", count])
    assert "allowed: 1 to 256" in capsys.readouterr().err


def workers(folder: Path, work: Work, code: int = 0, sockets: int = 1) -> Workers:
    listeners = [socket.socket() for _ in range(sockets)]
    return Workers(argparse.Namespace(workers=2, grace_seconds=0, code=code), listeners, folder, work)


def test_a_worker_that_dies_is_started_again_and_a_signal_ends_all(tmp_path: Path) -> None:
    both = workers(tmp_path, dies_once, sockets=2)
    both.run()
    assert [len((tmp_path / f"{number}.starts").read_text()) for number in (0, 1)] == [2, 2]
    assert not any(process.is_alive() for process in both.processes.values())
    assert [listener.fileno() for listener in both.listeners] == [-1, -1]


def test_each_worker_gets_its_part_of_the_connections(tmp_path: Path) -> None:
    """Of one socket, the one that wakes first would take a whole burst."""
    from sidera.cli.workers import bound

    def reached(listeners: Sequence[socket.socket], number: int) -> list[int]:
        address, found = listeners[0].getsockname(), [0] * len(listeners)
        with contextlib.ExitStack() as stack:
            for _ in range(number):
                stack.enter_context(socket.create_connection(address, 10))
            for place, listener in enumerate(listeners):
                listener.settimeout(0.05)
                with contextlib.suppress(OSError):
                    while True:
                        stack.enter_context(listener.accept()[0])
                        found[place] += 1
        return found

    with bound(argparse.Namespace(host="127.0.0.1", port=0, workers=2)) as listeners:
        assert reached(listeners, 20) == [20, 0], "the second does not listen yet"
        listeners[1].listen()
        found = reached(listeners, 100)
        assert sum(found) == 100
        assert min(found) >= 20
        both = Workers(argparse.Namespace(workers=2, grace_seconds=0), listeners, tmp_path, dies_once)
        assert [both._listener_of(number) for number in (0, 1)] == listeners
        alive: Any = SimpleNamespace(is_alive=lambda: True)
        both.processes = {0: alive, 1: SimpleNamespace(is_alive=lambda: False)}  # type: ignore[dict-item]
        both._leave_to_others(1)  # the other does not answer yet
        assert min(reached(listeners, 100)) >= 20
        both.places[0].write("")
        both._leave_to_others(1)
        assert reached(listeners, 20) == [20, 0]
        listeners[1].listen()  # it is back
        assert min(reached(listeners, 100)) >= 20


@pytest.mark.parametrize(("code", "said"), [(2, "worker 0 did not start"), (1, "worker 0 ended 3 times before it")])
def test_workers_that_cannot_come_up_end_the_server(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        workers(tmp_path, cannot, code).run()


@pytest.mark.slow  # imports torch three times
def test_a_run_that_is_none_is_said_once_and_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "none"), "--workers", "2", "--port", "0"]) == 2
    assert "worker 0 did not start" in capfd.readouterr().err


@pytest.mark.slow
def test_two_workers_are_one_server(trained_run: Path, tmp_path: Path) -> None:
    with process(trained_run, tmp_path, "--workers", "2") as (server, port):
        _until(lambda: len(_figure(port, "sidera_ready")) == 2)
        users = [f"user{number}" for number in range(8)]
        for user in users:
            body = json.dumps({"user": user, "items": ["item0003"], "times": [1]}).encode()
            assert b" 200 OK" in answer(send(port, call("/v1/events", body)))[:20]
        ask = [json.dumps({"user": user, "k": 3}).encode() for user in users for _ in range(4)]
        with ThreadPoolExecutor(8) as pool:  # each on a new connection, so both accept some
            replies = list(pool.map(lambda body: answer(send(port, call("/v1/recommend", body))), ask))
        assert all(b" 200 OK" in reply[:20] for reply in replies)
        assert not any(b'"cold_start":true' in reply for reply in replies)  # an event that one took is in all answers
        before = _figure(port, "process_start_time_seconds")
        os.kill(_children(server.pid)[0], signal.SIGKILL)
        _until(lambda: (now := _figure(port, "process_start_time_seconds")).keys() == before.keys() and now != before)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    catalog = Recommender.load(trained_run).catalog
    log = ExposureLog.open(tmp_path / "log", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    answered = {json.loads(reply.split(b"\r\n\r\n", 1)[1])["request"] for reply in replies}
    assert answered <= set(log.read()["request"].to_pylist())


def _children(pid: int) -> list[int]:
    """The workers of a parent."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def _figure(port: int, name: str) -> dict[str, float]:
    """Worker -> a figure of it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {worker: float(value) for worker, value in re.findall(name + r'\{worker="(\d+)"\} (\S+)', text)}


def _until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
