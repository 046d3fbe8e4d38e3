"""Sends prepared HTTP requests over raw sockets and times their answers: one thread, one selector.

A request costs some 30 us here, so the server is what is measured, also where both share two cores. (Falling asleep
and waking up costs another 40 us on a virtual machine, where nothing else was there to be done.) *Closed loop*: N
clients, each sends its next request when the last is answered; the server sets the pace. *Open loop*: requests arrive
as a Poisson process, whatever the server does, as people do; a request that no connection is free for waits, and its
wait counts.

Waiting is exact to some 60 us. Trap: an epoll wait is rounded up to whole milliseconds, so a request that is due sooner
is waited for with ``select`` on the epoll's own descriptor.
"""

from __future__ import annotations

import gc
import random
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from sidera.traffic.tally import Tally

RECEIVE_BYTES = 1 << 18
RETRY_SECONDS = 0.05  # between two attempts of a client whom the server refused a connection
SPIN_SECONDS = 50e-6  # a shorter wait is not worth falling asleep for
EPOLL_SECONDS = 1e-3  # its waits are whole multiples
SCAN_SECONDS = 0.05  # between two looks for requests that are out of time
SELECT_LIMIT = 1024  # descriptors that select can watch


class Prepared(NamedTuple):
    """A request that is ready to be sent; ``make`` writes it anew from its running number, where no two are equal."""

    kind: str  # what it is counted as
    data: bytes
    make: Callable[[int], bytes] | None = None


class _Sent(NamedTuple):
    """A request on its way."""

    request: Prepared
    data: bytes
    intended: float  # when it was meant to leave
    resent: bool = False


class _Connection:
    __slots__ = ("answers", "closes", "connecting", "due", "length", "received", "sent", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connecting = True
        self.answers = 0  # that came over it
        self.sent: _Sent | None = None
        self.due = 0.0  # when its request is out of time
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.length = -1  # of the whole answer; -1: not known yet; -2: it ends with an empty chunk
        self.closes = False


class Client:
    """One load against one server; used once."""

    def __init__(
        self, address: tuple[str, int], requests: Sequence[Prepared], *, timeout: float = 10.0,
        max_connections: int = 512, num_samples: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        """``requests`` are sent in their order, again and again. ``num_samples``: answers to keep whole."""
        self.address = (socket.gethostbyname(address[0]), address[1])
        self.requests, self.timeout, self.max_connections = requests, timeout, max_connections
        self.num_samples, self.random = num_samples, random.Random(seed)
        self.selector = selectors.DefaultSelector()
        number = getattr(self.selector, "fileno", lambda: SELECT_LIMIT)()
        self._watched = [number] if isinstance(self.selector, getattr(selectors, "EpollSelector", ())) else []
        if number >= SELECT_LIMIT:
            self._watched = []
        self.tally = Tally("")
        self._number = 0  # of the next request
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[_Sent] = deque()  # requests that no connection is free for
        self._again: deque[float] = deque()  # closed loop: when a refused client tries again
        self._closed_loop = False
        self._window = (0.0, 0.0)  # requests that were meant to leave in it are counted
        self._most_missed, self._slo, self._missed = 0, 0.0, 0
        self._scan_at = 0.0

    # -- the two loops ---------------------------------------------------------------------------------------------

    def closed(self, clients: int, seconds: float, warmup: float = 0.0) -> Tally:
        """``clients`` that each wait for their answer. Counted are requests that left in the ``seconds`` behind the
        warm-up."""
        self._closed_loop, self.max_connections = True, clients
        begin = self._begin(f"closed, {clients} clients", seconds, warmup)
        self._again.extend([begin] * clients)
        with _Running(self):
            while (now := time.perf_counter()) < self._window[1]:
                while self._again and self._again[0] <= now:
                    self._again.popleft()
                    self._start(self._next(now))
                self._turn(min(self._window[1], self._again[0] if self._again else now + 1.0) - now)
            self._drain()
        return self.tally

    def open(
        self, rate: float, seconds: float, warmup: float = 0.0, *, slo: float = 0.0, miss_share: float = 0.0
    ) -> Tally:
        """``rate`` requests a second on average, at random. With ``miss_share`` the window ends early once more than
        that share of its requests cannot be answered within ``slo`` seconds any more."""
        begin = self._begin(f"open, {rate:g} requests/s", seconds, warmup)
        self._slo, self._most_missed = slo, int(miss_share * rate * seconds) if miss_share else 0
        due, draw = begin, self.random.expovariate
        with _Running(self):
            while (now := time.perf_counter()) < self._window[1] and not self.tally.stopped_early:
                while due <= now:
                    self._start(self._next(due))
                    due += draw(rate)
                self._turn(min(due, self._window[1]) - time.perf_counter())
            self._drain()
        return self.tally

    def _begin(self, mode: str, seconds: float, warmup: float) -> float:
        begin = time.perf_counter()
        self._window = (begin + warmup, begin + warmup + seconds)
        self.tally.mode, self.tally.seconds = mode, seconds
        return begin

    def _next(self, intended: float) -> _Sent:
        request = self.requests[self._number % len(self.requests)]
        data = request.data if request.make is None else request.make(self._number)
        self._number += 1
        return _Sent(request, data, intended)

    def _drain(self) -> None:
        """Wait for the answers to what was sent in the window; no new request leaves."""
        self._closed_loop, end = False, time.perf_counter() + self.timeout
        while (self._waiting or any(one.sent for one in self._connections)) and time.perf_counter() < end:
            self._turn(SCAN_SECONDS)
        for one in [one.sent for one in self._connections if one.sent] + list(self._waiting):
            self._failed(one, "timeout")

    # -- one turn --------------------------------------------------------------------------------------------------

    def _turn(self, wait: float) -> None:
        """Handle what happens within ``wait`` seconds or sooner, at least what has happened."""
        for key, mask in self._events(min(wait, SCAN_SECONDS)):
            if mask & selectors.EVENT_WRITE:
                self._write(key.data)
            if mask & selectors.EVENT_READ:
                self._read(key.data)
        now = time.perf_counter()
        if now >= self._scan_at:
            self._scan_at = now + SCAN_SECONDS
            self._scan(now)

    def _events(self, wait: float) -> list[tuple[selectors.SelectorKey, int]]:
        if wait <= SPIN_SECONDS:
            return self.selector.select(0.0)
        begun = time.thread_time()
        if not self._watched or wait >= 2 * EPOLL_SECONDS:  # rounded up, it is still not too late
            events = self.selector.select(wait - EPOLL_SECONDS if self._watched else wait)
        else:
            select.select(self._watched, (), (), wait)
            events = self.selector.select(0.0)
        self.tally.waiting_cpu_seconds += time.thread_time() - begun
        return events

    def _scan(self, now: float) -> None:
        """Give up what is out of time, and the window where too much of it is late."""
        for connection in [one for one in self._connections if one.sent is not None and one.due < now]:
            sent = connection.sent
            connection.sent = None
            self._close(connection)
            assert sent is not None
            self._failed(sent, "timeout")
        while self._waiting and self._waiting[0].intended + self.timeout < now:
            self._failed(self._waiting.popleft(), "timeout")
        if self._most_missed:
            late, first = now - self._slo, self._window[0]
            known = [one.sent.intended for one in self._connections if one.sent] + [s.intended for s in self._waiting]
            hopeless = sum(first <= intended < late for intended in known)
            self.tally.stopped_early = self._missed + hopeless > self._most_missed

    # -- a request -------------------------------------------------------------------------------------------------

    def _start(self, sent: _Sent) -> None:
        if self._idle:
            self._send(self._idle.pop(), sent)
        elif len(self._connections) < self.max_connections:
            self._connect(sent)
        else:
            self._waiting.append(sent)

    def _connect(self, sent: _Sent) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        connection.sent, connection.due = sent, max(time.perf_counter(), sent.intended) + self.timeout
        self._connections.add(connection)
        try:
            sock.connect(self.address)
        except BlockingIOError:
            pass
        except OSError:
            self._lost(connection)
            return
        self.selector.register(sock, selectors.EVENT_WRITE, connection)

    def _send(self, connection: _Connection, sent: _Sent) -> None:
        connection.sent, connection.due = sent, max(time.perf_counter(), sent.intended) + self.timeout
        connection.length = -1
        if connection.received:
            connection.received = bytearray()
        self.tally.num_sent += 1
        data = sent.data
        try:
            count = connection.sock.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self._lost(connection)
            return
        if count < len(data):
            connection.unsent = memoryview(data)[count:]
            self.selector.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _write(self, connection: _Connection) -> None:
        if connection.connecting:
            if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._lost(connection)
                return
            connection.connecting = False
            self.selector.modify(connection.sock, selectors.EVENT_READ, connection)
            assert connection.sent is not None
            self._send(connection, connection.sent)
            return
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except BlockingIOError:
            return
        except OSError:  # the server refuses the rest; what it says stands to be read
            connection.unsent = memoryview(b"")
        if not connection.unsent:
            self.selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        if connection not in self._connections:  # closed while this turn's events were handled
            return
        try:
            data: bytes | bytearray = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or connection.sent is None:
            self._lost(connection)
            return
        if connection.received:
            connection.received += data
            data = connection.received
        if connection.length == -1:
            self._read_head(connection, data)
        complete = data.endswith(b"0\r\n\r\n") if connection.length == -2 else 0 <= connection.length <= len(data)
        if complete:
            self._answered(connection, data)
        elif not connection.received:
            connection.received += data

    def _read_head(self, connection: _Connection, data: bytes | bytearray) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(data[:end]).lower()
        place = head.find(b"\r\ncontent-length:")
        if place >= 0:
            connection.length = end + 4 + int(head[place + 17 :].split(b"\r\n", 1)[0])
        else:
            connection.length = -2 if b"transfer-encoding: chunked" in head else end + 4
        connection.closes = b"\r\nconnection: close" in head

    def _answered(self, connection: _Connection, data: bytes | bytearray) -> None:
        now, sent = time.perf_counter(), connection.sent
        assert sent is not None
        connection.sent = None
        connection.answers += 1
        if self._counts(sent):
            seconds, status = now - sent.intended, bytes(data[9:12])
            self.tally.kind(sent.request.kind).answer(int(status) if status.isdigit() else 0, seconds)
            self._missed += seconds > self._slo or status[:1] != b"2"
            if len(self.tally.samples) < self.num_samples:
                self.tally.samples.append(bytes(data))
        if connection.closes or connection.unsent:  # answered before it had all of the request: no way to go on
            self._close(connection)
        elif self._closed_loop:
            if now < self._window[1]:
                self._send(connection, self._next(now))
            return
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
            return
        else:
            self._idle.append(connection)
        if self._closed_loop:
            self._again.append(now)

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def _lost(self, connection: _Connection) -> None:
        """The server closed the connection, or refused it."""
        sent, connection.sent = connection.sent, None
        self._close(connection)
        if sent is None:
            return
        if connection.answers and not connection.received and not sent.resent:  # it closed while the request left
            self._start(sent._replace(resent=True))
        else:
            self._failed(sent, "refused" if connection.connecting else "reset")

    def _failed(self, sent: _Sent, why: str) -> None:
        if self._counts(sent):
            self.tally.kind(sent.request.kind).errors[why] += 1
            self._missed += 1
        if self._closed_loop:
            self._again.append(time.perf_counter() + RETRY_SECONDS)

    def _counts(self, sent: _Sent) -> bool:
        return self._window[0] <= sent.intended < self._window[1]

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        with suppress(KeyError, ValueError):
            self.selector.unregister(connection.sock)
        connection.sock.close()
        if self._waiting and len(self._connections) < self.max_connections:
            self._connect(self._waiting.popleft())


class _Running:
    """No garbage collection while it runs, the generator's own CPU time, and every socket closed behind it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()
        self._begun = time.thread_time()

    def __exit__(self, *error: object) -> None:
        client = self.client
        client.tally.cpu_seconds = time.thread_time() - self._begun
        client._waiting.clear()
        for connection in list(client._connections):
            client._close(connection)
        client.selector.close()
        if self._collects:
            gc.enable()
