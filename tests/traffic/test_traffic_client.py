"""The load generator against servers that do what real ones do: stall, refuse, cut off, answer in pieces."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from sidera.traffic.client import Client, Prepared
from sidera.traffic.highest_rate import highest_rate
from sidera.traffic.tally import KindTally, Tally, percentile

REQUEST = Prepared("ask", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[int, socket.socket], bool]  # number of the request, where it came from -> whether to go on


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, int]]:
    """A server, one thread a connection; requests are numbered over all connections as they come."""
    numbers = count()

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            received = b""
            while data := sock.recv(1 << 16):
                received += data
                while b"\r\n\r\n" in received:
                    _, _, received = received.partition(b"\r\n\r\n")
                    if not answer(next(numbers), sock):
                        return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()


def send(data: bytes) -> Answer:
    return lambda number, sock: sock.sendall(data) is None


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 99.9, 100)] == [1.0, 50.0, 99.0, 100.0, 100.0]
    assert percentile([7.0], 50) == 7.0
    assert math.isnan(percentile([], 50))


def test_closed_loop_has_as_many_on_their_way_as_clients() -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def answer(number: int, sock: socket.socket) -> bool:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= 1
        sock.sendall(ANSWER)
        return True

    with answering(answer) as address:
        tally = Client(address, [REQUEST]).closed(3, 0.5, 0.1)
    kind = tally.kinds["ask"]
    assert most[0] == 3
    assert kind.errors == {}
    assert set(kind.latencies) == {200}
    assert min(kind.successes) >= 0.01
    assert tally.num_sent > kind.num_requests > 0  # the warm-up is sent and not counted


def test_a_stall_is_felt_by_every_request_that_was_due_in_it() -> None:
    """A closed loop of one client would send one request in the stall and so report one slow answer."""
    stalled, stall = threading.Event(), 0.5

    def answer(number: int, sock: socket.socket) -> bool:
        if number == 20:
            stalled.set()
            time.sleep(stall)
        sock.sendall(ANSWER)
        return True

    with answering(answer) as address:
        kind = Client(address, [REQUEST], max_connections=1).open(100.0, 1.5).kinds["ask"]
    slow = [seconds for seconds in kind.successes if seconds > stall / 4]
    assert stalled.is_set()
    assert len(slow) > 10  # some 50 x 3/4 arrive while it stalls; the first of them waits longest
    assert kind.errors == {}
    assert max(kind.successes) >= stall


def test_poisson_arrivals_keep_their_rate() -> None:
    with answering(send(ANSWER)) as address:
        kind = Client(address, [REQUEST], seed=1).open(400.0, 1.0).kinds["ask"]
    assert 400 - 5 * 20 < kind.num_requests < 400 + 5 * 20  # five standard deviations


def test_kinds_and_statuses_are_counted_apart() -> None:
    refusal = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"
    requests = [REQUEST, Prepared("other", REQUEST.data)]
    with answering(lambda number, sock: sock.sendall(refusal if number % 4 == 3 else ANSWER) is None) as address:
        tally = Client(address, requests, num_samples=5).closed(1, 0.3)
    assert set(tally.kinds["ask"].latencies) == {200}
    assert set(tally.kinds["other"].latencies) == {200, 429}
    figures = tally.as_dict(0.1)["kinds"]["other"]
    assert figures["refusal_ms"]["p50"] > 0
    assert figures["goodput_per_second"] <= figures["answers_per_second"]
    assert tally.samples == [ANSWER, ANSWER, ANSWER, refusal, ANSWER]
    assert "429" in tally.lines(0.1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000,
    ],
)
def test_answers_of_every_length(answer: bytes) -> None:
    with answering(send(answer)) as address:
        kind = Client(address, [REQUEST], timeout=1.0).closed(2, 0.2).kinds["ask"]
    assert kind.errors == {}
    assert len(kind.successes) > 2


def test_answers_in_pieces() -> None:
    def answer(number: int, sock: socket.socket) -> bool:
        for byte in ANSWER:
            sock.send(bytes([byte]))
        return True

    with answering(answer) as address:
        kind = Client(address, [REQUEST], timeout=1.0).closed(1, 0.2).kinds["ask"]
    assert kind.errors == {}
    assert set(kind.latencies) == {200}


def test_a_server_that_closes_idle_connections_costs_no_request() -> None:
    """Every connection is closed behind its second answer, without a word before."""
    served: dict[socket.socket, int] = {}

    def answer(number: int, sock: socket.socket) -> bool:
        sock.sendall(ANSWER)
        served[sock] = served.get(sock, 0) + 1
        return served[sock] < 2

    with answering(answer) as address:
        kind = Client(address, [REQUEST], timeout=1.0).open(100.0, 0.5).kinds["ask"]
    assert kind.errors == {}


def test_what_goes_wrong_is_named() -> None:
    with answering(lambda number, sock: False) as address:  # closes instead of answering
        assert set(Client(address, [REQUEST]).closed(1, 0.2).kinds["ask"].errors) == {"reset"}
    with answering(lambda number, sock: True) as address:  # never answers
        kind = Client(address, [REQUEST], timeout=0.2).closed(2, 0.5).kinds["ask"]
        assert set(kind.errors) == {"timeout"}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        kind = Client(nobody.getsockname(), [REQUEST]).open(50.0, 0.3).kinds["ask"]
        assert set(kind.errors) == {"refused"}


def test_a_window_that_is_lost_ends_early() -> None:
    begun = time.perf_counter()
    with answering(lambda number, sock: True) as address:
        tally = Client(address, [REQUEST], timeout=0.3).open(50.0, 20.0, slo=0.05, miss_share=0.01)
    assert tally.stopped_early
    assert not tally.meets(0.05)
    assert time.perf_counter() - begun < 10


def window(capacity: float, tried: list[float]) -> Callable[[float, float], Tally]:
    """A server that answers in time below its capacity, and nothing above."""

    def load(rate: float, seconds: float) -> Tally:
        tried.append(rate)
        kind = KindTally()
        for _ in range(100):
            kind.answer(200, 0.01 if rate <= capacity else 1.0)
        return Tally("", seconds, {"ask": kind})

    return load


@pytest.mark.parametrize("capacity", [3.0, 20.0, 333.0])
def test_the_highest_rate_is_found(capacity: float) -> None:
    tried: list[float] = []
    found = highest_rate(window(capacity, tried), 0.1, 20.0, 1.0)
    assert capacity / 1.1 <= found.rate <= capacity
    assert found.confirmed is not None
    assert [rate for rate, _ in found.tried] == tried


def test_a_rate_that_a_longer_window_does_not_confirm_is_lowered() -> None:
    def load(rate: float, seconds: float) -> Tally:
        return window(100.0 if seconds == 1.0 else 80.0, [])(rate, seconds)

    assert 70.0 < highest_rate(load, 0.1, 20.0, 1.0).rate <= 80.0


def test_refusals_count_as_late() -> None:
    kind = KindTally()
    for number in range(100):
        kind.answer(200 if number else 429, 0.01)
    tally = Tally("", 1.0, {"ask": kind})
    assert tally.meets(0.1, 0.99)
    kind.answer(503, 0.01)
    assert not tally.meets(0.1, 0.99)
