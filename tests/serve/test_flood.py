"""Thousands of connections or bodies at once: who was served before keeps its place, and nobody waits long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from live_server import call, listening, one_answer, send, until
from sidera.engine.recommender import Recommender
from sidera.engine.scheduler import Place
from sidera.serve import protocol
from sidera.serve.config import HttpConfig
from sidera.serve.errors import Refused
from sidera.serve.protocol import CUTS, MOST_PIECES, Protocol, sweep
from sidera.serve.server import ACCEPTS
from sidera.serve.state import Served

MOST = 60  # connections
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
SLOW = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "


@pytest.fixture(scope="module")
def live(trained_run: Path) -> Iterator[tuple[int, Served]]:
    config = HttpConfig(max_body_mb=1, max_connections=MOST, grace_seconds=1)
    with listening(Recommender.load(trained_run), config) as found:
        yield found


def test_a_client_that_was_answered_keeps_its_connection(live: tuple[int, Served]) -> None:
    """It is the longest idle of all, and the flood has to make room for itself."""
    port, served = live
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(send(port, HEALTH))
        assert one_answer(kept).startswith(b"HTTP/1.1 200")
        for _ in range(MOST + 20):
            stack.enter_context(send(port, SLOW))
        until(lambda: served.metrics.cut.get("made room", 0) >= 20)
        kept.sendall(HEALTH)
        assert one_answer(kept).startswith(b"HTTP/1.1 200")


def test_idle_clients_make_room_where_they_are_the_most(live: tuple[int, Served]) -> None:
    port, _ = live
    with contextlib.ExitStack() as stack:
        for _ in range(MOST + 5):
            one = stack.enter_context(send(port, HEALTH))
            assert one_answer(one).startswith(b"HTTP/1.1 200")


def test_a_refused_body_is_read_although_strangers_flood(live: tuple[int, Served]) -> None:
    """Its answer stands to be read: to close now would reset the connection and lose it."""
    port, served = live
    before = served.metrics.cut.get("made room", 0)
    body = b"x" * 2_000_000
    whole = call("/v1/recommend", body)
    with contextlib.ExitStack() as stack:
        large = stack.enter_context(send(port, whole[:-10]))
        for _ in range(MOST + 20):
            stack.enter_context(send(port, SLOW))
        until(lambda: served.metrics.cut.get("made room", 0) >= before + 20)
        large.sendall(whole[-10:])
        assert one_answer(large).startswith(b"HTTP/1.1 413")


def test_a_burst_is_accepted_in_few_turns_of_the_loop(
    live: tuple[int, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = live
    loops, turns, turn, gate, over = list[Any](), list[int](), [0], threading.Event(), threading.Event()
    made = Protocol.connection_made

    def noted(self: Protocol, transport: Any) -> None:
        loops.append(self.loop)
        turns.append(turn[0])
        made(self, transport)

    def count() -> None:
        turn[0] += 1
        if not over.is_set():
            loops[0].call_soon(count)

    monkeypatch.setattr(Protocol, "connection_made", noted)
    with contextlib.ExitStack() as stack:
        stack.callback(over.set)
        stack.callback(gate.set)
        stack.enter_context(send(port, HEALTH))
        until(lambda: loops)
        loops[0].call_soon_threadsafe(gate.wait)  # nothing is accepted until they all wait
        loops[0].call_soon_threadsafe(count)
        for _ in range(ACCEPTS):
            stack.enter_context(send(port, SLOW))
        gate.set()
        until(lambda: len(turns) == 1 + ACCEPTS)
    assert max(turns[1:]) - min(turns[1:]) < ACCEPTS // 4


def test_who_asks_again_at_once_is_read_later(live: tuple[int, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask in a loop would keep the engine from the processor: it would seem slow and go on refusing."""
    port, _ = live
    asked, body = call("/v1/recommend", b'{"history": []}').replace(b"connection: close\r\n", b""), b"overloaded"

    def let_in(self: Served, deadline: float, priority: int) -> Place:
        raise Refused(503, body.decode(), 1)

    with send(port, HEALTH) as calm, send(port, HEALTH) as one, monkeypatch.context() as patch:
        for each in (calm, one):
            assert one_answer(each).startswith(b"HTTP/1.1 200")
        patch.setattr(Served, "let_in", let_in)
        patch.setattr(protocol, "BREATH", 0.03)
        patch.setattr(protocol, "AT_ONCE", 1.0)
        began = time.monotonic()
        for _ in range(10):
            one.sendall(asked)
            assert body in one_answer(one)
        assert time.monotonic() - began >= 8 * 0.03 * 0.9  # the loop's clock counts milliseconds, of its turn's begin
        calm.sendall(HEALTH)
        assert one_answer(calm).startswith(b"HTTP/1.1 200")
        one.sendall(HEALTH)  # it is not forgotten
        assert one_answer(one).startswith(b"HTTP/1.1 200")


def test_a_busy_server_refuses_a_whole_call_without_the_parser(
    live: tuple[int, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is not whole, or unusual, goes the long way to the same answer."""
    port, served = live
    parsed = list[bytes]()
    complete = Protocol.on_headers_complete

    def noted(self: Protocol) -> None:
        parsed.append(self.url)
        complete(self)

    def let_in(self: Served, deadline: float, priority: int) -> Place:
        if priority == 1:
            raise Refused(503, "overloaded", 1)
        return Place(self.asker.scheduler, 1, priority)

    monkeypatch.setattr(Protocol, "on_headers_complete", noted)
    monkeypatch.setattr(Served, "let_in", let_in)
    monkeypatch.setattr(type(served.asker.scheduler), "num_waiting", 3)
    body = b'{"history": []}'
    plain = call("/v1/recommend", body).replace(b"connection: close\r\n", b"")
    kept = plain.replace(b"host: x", b"Host: x\r\nConnection: keep-alive\r\nX-Deadline-Ms: 100")
    urgent = plain.replace(b"host: x", b"host: x\r\nx-priority: high")
    chunked = plain.replace(b"content-length: 15", b"transfer-encoding: chunked").replace(
        body, b"f\r\n" + body + b"\r\n0\r\n\r\n"
    )
    with send(port, plain) as one:
        assert b"overloaded" in one_answer(one)
        one.sendall(kept)
        assert b"503" in one_answer(one)
        assert parsed == []
        for number, odd in enumerate((chunked, plain.replace(b"host: x", b"host: x\r\nexpect: nothing")), 1):
            one.sendall(odd)
            assert b"overloaded" in one_answer(one)
            assert len(parsed) >= number
        one.sendall(plain[:40])
        time.sleep(0.05)
        one.sendall(plain[40:])
        assert b"overloaded" in one_answer(one)
        before = len(parsed)
        one.sendall(HEALTH)
        assert one_answer(one).startswith(b"HTTP/1.1 200")
        one.sendall(urgent)
        assert one_answer(one).startswith(b"HTTP/1.1 200"), "it is let in"
        assert len(parsed) == before + 2


def test_every_place_is_left(live: tuple[int, Served]) -> None:
    """By an answer, a body that cannot be read, one that is not asked for, and a client that leaves or says no HTTP."""
    port, served = live
    scheduler = served.asker.scheduler
    body = b'{"history": []}'
    odd = call("/v1/recommend", body).replace(b"host: x", b"host: x\r\nx-odd: \x01\x02")
    for one in (
        call("/v1/recommend", body), call("/v1/recommend", b"{"), call("/v1/recommend", b'{"histories": 3}'),
        call("/v1/recommend/batch", b'{"requests": [{"history": []}, {"history": []}]}'), odd,
        call("/v1/recommend", b"x" * 2_000_000), call("/v1/recommend", body, more="x-deadline-ms: soon\r\n"),
        call("/v1/recommend", body, more="transfer-encoding: chunked\r\n"),
    ):  # fmt: skip
        with send(port, one) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 ")
    until(lambda: not any(scheduler._coming_rows))
    before = served.metrics.requests.get(("/v1/recommend", 200), 0)
    with send(port, call("/v1/recommend", body, length=100)), send(port, call("/v1/recommend", body)) as whole:
        assert one_answer(whole).startswith(b"HTTP/1.1 200")
        until(lambda: served.metrics.requests["/v1/recommend", 200] > before)
        assert not any(scheduler._coming_rows), "half a body keeps no place"


def test_connections_that_come_due_together_are_cut_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HALF_SECOND", 0)
    done = list[str]()

    connections: set[Any] = set()

    class Slow:
        def overdue(self, now: float) -> str:
            return "slow header"

        def cut(self, reason: str) -> None:
            done.append(reason)
            connections.discard(self)

    connections.update(Slow() for _ in range(3 * CUTS))

    async def others() -> None:
        sweeping = asyncio.create_task(sweep(connections))
        while connections:
            done.append("other")
            await asyncio.sleep(0)
        sweeping.cancel()

    asyncio.run(others())
    in_a_row = max(len(part.split()) for part in " ".join(done).replace("slow header", "cut").split("other"))
    assert in_a_row == CUTS


def test_refused_bodies_are_read_a_few_pieces_at_a_time_where_the_loop_came_late() -> None:
    read = list[int]()
    waiting = deque(
        SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: False, resume_reading=lambda: read.append(1)))
        for _ in range(40)
    )
    asked = list[float]()
    loop = SimpleNamespace(call_later=lambda seconds, *call: asked.append(seconds))
    Protocol._drop_more(SimpleNamespace(dropping=waiting, loop=loop, _drop_more=None), time.monotonic() - 60)  # type: ignore[arg-type]
    assert len(read) == MOST_PIECES
    assert len(asked) == 1
