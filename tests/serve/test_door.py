"""Connections and bodies that come slowly, partly, too large or too many: none shuts others out, none is half kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_server import answer, call, listening, one_answer, send, until
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.scheduler import SchedulerConfig
from sidera.engine.serving import Parts
from sidera.serve.config import HttpConfig
from sidera.serve.state import Served

ASK = json.dumps({"history": ["item0003", "item0007"], "k": 3}).encode()
EVENT = json.dumps({"user": "ann", "items": ["item0003"], "times": [1_700_000_000]}).encode()
CONFIG = HttpConfig(
    max_body_mb=1, bodies_mb=2, max_connections=60, header_seconds=1, body_seconds=1, grace_seconds=1,
    scheduler=SchedulerConfig(deadline_ms=60_000),
)  # fmt: skip


@pytest.fixture(scope="module")
def live(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Served]]:
    opened = Recommender.load(trained_run)
    with open_behaviour(tmp_path_factory.mktemp("door") / "store", opened.catalog) as behaviour:
        opened.parts = Parts(behaviour=behaviour)
        with listening(opened, CONFIG) as found:
            yield found


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def ask(port: int) -> int:
    return status(answer(send(port, call("/v1/recommend", ASK))))


def num_users(served: Served) -> int:
    assert served.recommender.behaviour is not None
    return served.recommender.behaviour.store.num_users


def test_a_body_that_ends_early_is_not_kept(live: tuple[int, Served]) -> None:
    port, served = live
    connection = send(port, call("/v1/events", EVENT, length=len(EVENT) + 500))
    time.sleep(0.2)
    connection.close()
    connection = send(port, call("/v1/events", EVENT, length=len(EVENT) + 500))  # its end is announced only
    connection.shutdown(1)
    answer(connection)
    assert ask(port) == 200
    assert num_users(served) == 0


def test_a_body_that_goes_on_is_not_kept(live: tuple[int, Served]) -> None:
    port, served = live
    reply = answer(send(port, call("/v1/events", EVENT + b"xyz" * 100, length=len(EVENT))))
    assert status(reply) == 400
    assert reply.endswith(b'{"detail": "this is no HTTP request"}')
    assert num_users(served) == 0
    assert status(answer(send(port, call("/v1/events", EVENT)))) == 200
    assert num_users(served) == 1


def test_slow_headers_shut_nobody_out_and_are_cut(live: tuple[int, Served]) -> None:
    port, served = live
    slow = [send(port, b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\nx-slow: ") for _ in range(100)]
    assert ask(port) == 200  # 60 connections at most: the oldest made room
    assert served.metrics.cut["made room"] >= 41
    replies = [answer(connection) for connection in slow]  # ends: each is cut
    assert {reply[:12] for reply in replies} <= {b"HTTP/1.1 408", b""}
    assert served.metrics.cut["slow header"] >= 1
    assert ask(port) == 200


def test_a_header_that_drips_is_cut(live: tuple[int, Served]) -> None:
    port, _ = live
    connection, began = send(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n"), time.monotonic()
    with pytest.raises(OSError):  # noqa: PT012 closed by the other side
        while time.monotonic() - began < 30:
            connection.sendall(b"x-a: b\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began < 20


def test_a_kept_connection_has_the_same_time_for_its_next_header(live: tuple[int, Served]) -> None:
    port, _ = live
    connection = send(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert status(one_answer(connection)) == 200
    connection.sendall(b"GET /heal")
    assert status(answer(connection)) == 408


def test_half_bodies_hold_nobody_up_and_are_cut(live: tuple[int, Served]) -> None:
    port, served = live
    halves = [send(port, call("/v1/recommend", ASK, length=len(ASK) + 10)) for _ in range(40)]
    assert ask(port) == 200
    for connection in halves:
        assert status(answer(connection)) == 408
    assert served.metrics.cut["slow body"] >= 40
    assert served.metrics.body_bytes == 0


def test_all_bodies_together_are_bounded(live: tuple[int, Served]) -> None:
    """Five of 0.9 MiB, of which two fit: the others are told to come again, and nothing stays held."""
    port, served = live
    large = json.dumps({"history": ["item0003"] * 78_000, "k": 3}).encode()
    assert 0.85 < len(large) / 2**20 < 1
    connections = [send(port, call("/v1/recommend", large[:-10], length=len(large))) for _ in range(5)]
    until(lambda: served.metrics.body_bytes > 2**20)
    time.sleep(0.3)
    for connection in connections:
        connection.settimeout(30)
        connection.sendall(large[-10:])
    replies = [answer(connection) for connection in connections]
    assert sorted(map(status, replies)) == [200, 200, 503, 503, 503]
    assert any(b"retry-after: 1\r\n" in reply for reply in replies)
    until(lambda: served.metrics.body_bytes == 0)
    assert status(answer(send(port, call("/v1/recommend", ASK, length=2**40)))) == 413


def test_an_idle_server_answers_while_its_limits_are_tried(live: tuple[int, Served]) -> None:
    """Healthz is answered while the engine is held up."""
    port, served = live
    recommender = served.recommender
    go, began = threading.Event(), threading.Event()
    answers = recommender.answers

    def held(*arguments: object) -> object:
        began.set()
        assert go.wait(30)
        return answers(*arguments)  # type: ignore[arg-type]

    recommender.answers = held  # type: ignore[method-assign, assignment]
    try:
        waiting = send(port, call("/v1/recommend", ASK))
        assert began.wait(30)
        for path in ("/healthz", "/readyz", "/metrics"):
            quick = answer(send(port, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()))
            assert status(quick) == 200
        late = answer(send(port, call("/v1/recommend", ASK, more="x-deadline-ms: 1\r\n")))
        assert status(late) == 503
        assert b"longer than the deadline allows" in late
        again = call("/v1/recommend", ASK, more="x-deadline-ms: 1\r\n").replace(b"connection: close\r\n", b"")
        kept = send(port, again)
        for _ in range(3):  # refused before its body, and the connection goes on
            refused = one_answer(kept)
            assert status(refused) == 503
            assert b"retry-after: 1\r\n" in refused
            kept.sendall(again)
        leaver = send(port, call("/v1/recommend", ASK))
        until(lambda: served.asker.scheduler.num_waiting == 1)
        leaver.close()
        time.sleep(0.2)
    finally:
        go.set()
        recommender.answers = answers  # type: ignore[method-assign]
    assert status(answer(waiting)) == 200
    until(lambda: served.asker.scheduler.counts.dropped == 1)


def test_large_bodies_that_are_refused_are_read_to_their_end_in_turn(live: tuple[int, Served]) -> None:
    """Each client has sent everything before it reads, and finds its answer; others are answered meanwhile."""
    port, served = live
    waiting, statuses = list[int](), list[int]()

    def send_all() -> None:
        connection = send(port, call("/v1/recommend", b"x" * 8_000_000))
        statuses.append(status(answer(connection)))

    threads = [threading.Thread(target=send_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        waiting.append(ask(port))
    assert statuses == [413] * 4
    assert set(waiting) == {200}
    assert served.metrics.body_bytes == 0


def test_headers_that_mean_nothing_are_named(live: tuple[int, Served]) -> None:
    for header in ("x-deadline-ms: 0", "x-deadline-ms: soon", "x-deadline-ms: 9999999999", "x-priority: urgent"):
        reply = answer(send(live[0], call("/v1/recommend", ASK, more=f"{header}\r\n")))
        assert status(reply) == 422
        assert b"allowed:" in reply
