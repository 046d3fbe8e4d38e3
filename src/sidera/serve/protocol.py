"""Connections that take their time: uvicorn's HTTP protocols with the limits that they lack.

uvicorn closes a connection that stays idle after an answer, and has no other timer: one that never ends its header or
its body stays for good. Here a sweep, twice a second, closes what is over its time. The number of connections is
bounded: one without a request makes room for a new one, so that nobody can shut the others out by holding connections
open. It is taken from the larger of two groups, those that have been answered before and those that have not, and is
the oldest of it: who floods a server with connections loses them, and its clients keep theirs.

Traps: a request whose end cannot be parsed has been handed to the application when its header was complete. It is
marked as left, so that nothing of it is kept. A connection that is closed while the other side still sends is reset,
and takes the answer with it: after a refusal before the end of a body it *lingers* until the body is over. What is
refused is read at a pace that all such bodies share, so that gigabytes of them do not keep the others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sidera.engine.scheduler import Place
from sidera.serve.errors import Refused
from sidera.serve.state import Served

LARGE, PACE = 2**16, 0.002  # bytes of a piece of a refused body, and seconds until the next one
MOST_PIECES = 4  # that are read in one turn where the loop came late: many would make the next turn late, too
HALF_SECOND = 0.5  # between two sweeps
AT_ONCE = 0.05  # seconds: who asks again so soon after a refusal is read after a BREATH: clients that ask in a loop
BREATH = 0.005  # would keep the engine from the processor, and so the refusals would go on when the load is gone
CUTS = 32  # connections that a sweep closes before it lets others go on: thousands come due together
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 34\r\nretry-after: 1\r\n"
    b'connection: close\r\n\r\n{"detail": "too many connections"}'
)
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: %b\r\n"
SIZE = b"content-length: %d\r\n\r\n"
ASKS = {path.encode(): path for path in ("/v1/recommend", "/v1/recommend/batch")}  # what the engine answers
# A call of the engine whose header says nothing unusual; a busy server can refuse it without the parser.
PLAIN = re.compile(rb"POST (/v1/recommend(?:/batch)?) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[^\r\n]*\r\n)+)\r\n")
UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
# In place of a request's cycle: it is answered, and its body is read and dropped.
REFUSED = SimpleNamespace(response_complete=True, more_body=False, scope={}, message_event=asyncio.Event())
NO_HTTP = b'{"detail": "this is no HTTP request"}'
TOO_SLOW = b'{"detail": "the request came too slowly"}'

if TYPE_CHECKING:
    Base = Any
else:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base


class Protocol(Base):
    """One connection. What all share is set by :func:`protocol_for`."""

    served: Served
    idle: dict[Protocol, None]  # connections that were answered and wait for a request, the longest idle first
    strangers: dict[Protocol, None]  # new ones that have not sent a whole header, the oldest first
    dropping: deque[Protocol]  # connections that wait to read the next piece of a refused body

    def connection_made(self, transport: Any) -> None:
        self.since = time.monotonic()  # of what it is waited for: the end of a header, of a body, the next request
        self.speaking = True  # a new connection has to send a header
        if len(self.connections) >= self.served.config.max_connections and not self._make_room():
            self.served.metrics.cut_one("too many connections")
            transport.write(TOO_MANY)
            transport.close()
            return
        self.lingering = self.midway = False
        self.refused = -AT_ONCE  # when its last request was
        self.place: Place | None = None  # of the request whose header is being read
        self.strangers[self] = None
        with contextlib.suppress(AttributeError):  # of httptools: bytes behind the last request are an error
            self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:  # it was refused
            return
        self._known()
        self._left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None or (not self.midway and self._refused_unread(data)):
            return
        self.midway = True
        if not self.speaking:
            self.speaking, self.since = True, time.monotonic()
        super().data_received(data)
        if self.busy and self.cycle.more_body and "place" in self.scope:  # else half a body would keep it from others
            self.scope["place"].release()
        if (self.lingering or self.cycle is REFUSED) and len(data) >= LARGE and not self.transport.is_closing():
            self.transport.pause_reading()
            self.dropping.append(self)
            if len(self.dropping) == 1:
                self.loop.call_later(PACE, self._drop_more, time.monotonic())

    def _drop_more(self, before: float) -> None:
        """The connections whose turn it is read one piece more."""
        now = time.monotonic()
        for _ in range(min(len(self.dropping), MOST_PIECES, max(1, int((now - before) / PACE)))):
            one = self.dropping.popleft()
            if one.transport is not None and not one.transport.is_closing():
                one.transport.resume_reading()
        if self.dropping:
            self.loop.call_later(PACE, self._drop_more, now)

    def on_message_begin(self) -> None:
        self.midway = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        path = None if self.busy or self.place is not None else ASKS.get(self.url)
        if path is not None and self.parser.get_method() == b"POST" and self._refused(path, self.headers):
            self.cycle = REFUSED
            self.lingering = not self.parser.should_keep_alive()
            return
        super().on_headers_complete()
        self._known()
        self.scope["linger"] = self._linger
        if self.place is not None:  # whoever answers leaves it
            self.scope["place"], self.place = self.place, None

    def on_message_complete(self) -> None:
        self.midway = False
        super().on_message_complete()
        if self.lingering:
            self.transport.close()
        elif self.cycle is REFUSED:
            self._breathe()

    def _breathe(self) -> None:
        """A request was refused: wait for the next one, and with the reading of it when the last one came just now."""
        before, self.refused = self.refused, self.since
        if self.since - before < AT_ONCE:
            self.transport.pause_reading()
            self.loop.call_later(BREATH, self._read_again)
        if self.timeout_keep_alive_task is None:
            self._wait_for_next(self.timeout_keep_alive)

    def _wait_for_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's, of a connection that may have been refused since the timer was set: a timer for each refusal would
        cost as much as the refusal."""
        left = self.since + self.timeout_keep_alive - time.monotonic()
        if left > 0 and self.refused == self.since and not self.transport.is_closing():
            self._wait_for_next(left)
        else:
            super().timeout_keep_alive_handler()

    def _read_again(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def on_response_complete(self) -> None:
        self.speaking, self.since = self.lingering or bool(getattr(self, "pipeline", ())), time.monotonic()
        self.idle[self] = None
        super().on_response_complete()

    def _refused_unread(self, data: bytes) -> bool:
        """:meth:`_refused` of a whole call that came in one piece, without the parser."""
        if self.busy or self.lingering or not self.served.asker.scheduler.num_waiting:
            return False
        found = PLAIN.match(data)
        if found is None:
            return False
        headers, length = list[tuple[bytes, bytes]](), -1
        for line in found[2].split(b"\r\n")[:-1]:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            if name in UNUSUAL or (name == b"connection" and value.lower() != b"keep-alive"):
                return False
            if name == b"content-length":
                if length >= 0 or not value.isdigit() or len(value) > 15:
                    return False
                length = int(value)
            headers.append((name, value))
        if found.end() + length != len(data) or not self._refused(found[1].decode(), headers):
            return False
        self._breathe()
        return True

    def _refused(self, path: str, headers: list[tuple[bytes, bytes]]) -> bool:
        """Answer 503 where the engine has too much to do, for a tenth of what a request costs that is let in, and keep
        a place where it has not."""
        try:
            seconds, priority = self.served.urgency(headers)
            self.place = self.served.let_in(time.monotonic() + seconds, priority)
        except Refused as refusal:
            if refusal.status_code != 503:
                return False
            content = b'{"detail":"%b"}' % refusal.detail.encode()
            wait = refusal.headers["retry-after"].encode()  # type: ignore[index]
            self.transport.write(BUSY % wait + SIZE % len(content) + content)
            self.served.metrics.saw(path, 503, 0.0)
            self.speaking, self.since = False, time.monotonic()
            self._known()
            self.idle[self] = None
            return True
        return False

    def _linger(self) -> None:
        """The answer goes out before the body has come: read that, and close then."""
        if self.cycle.more_body:
            self.lingering = self.cycle.keep_alive = True

    def send_400_response(self, msg: str) -> None:
        self._left()
        self._close_with(b"400 Bad Request", NO_HTTP)

    @property
    def busy(self) -> bool:
        """A request of it is on its way: its header is complete, its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def overdue(self, now: float) -> str:
        """Why the connection has to go; "" when it may stay."""
        config = self.served.config
        if not self.busy:
            return "slow header" if self.speaking and now - self.since > config.header_seconds else ""
        slow = self.cycle.more_body and now - self.since > config.header_seconds + config.body_seconds
        return "slow body" if slow else ""

    def cut(self, reason: str) -> None:
        self.served.metrics.cut_one(reason)
        self._left()
        if self.lingering or (self.busy and self.cycle.response_started):
            self.transport.close()
        else:
            self._close_with(b"408 Request Timeout", TOO_SLOW)

    def _close_with(self, status: bytes, content: bytes) -> None:
        if self.transport.is_closing():
            return
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(content)) + content)
        self.transport.close()

    def _left(self) -> None:
        """Nobody waits for the request that is on its way: it leaves the queue, and its body is read no further."""
        if self.place is not None:
            self.place.release()
        if self.busy:
            visit = self.cycle.scope.get("visit")
            for ticket in () if visit is None else visit.tickets:
                ticket.cancelled = True
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _known(self) -> None:
        """It is neither new nor idle any more."""
        self.idle.pop(self, None)
        self.strangers.pop(self, None)

    def _make_room(self) -> bool:
        fewer, more = sorted((self.strangers, self.idle), key=len)
        oldest = next((one for one in chain(more, fewer) if not one.busy), None)
        if oldest is None:
            return False
        self.served.metrics.cut_one("made room")
        oldest._known()
        self.connections.discard(oldest)
        oldest.transport.close()
        return True


def protocol_for(served: Served) -> type[Protocol]:
    """The class that uvicorn makes connections of."""
    return type("ServedProtocol", (Protocol,), {"served": served, "idle": {}, "strangers": {}, "dropping": deque()})


async def sweep(connections: set[Protocol]) -> None:
    """Close what is over its time, for ever."""
    while True:
        await asyncio.sleep(HALF_SECOND)
        now, num_cut = time.monotonic(), 0
        for connection in list(connections):
            if connection in connections and (reason := connection.overdue(now)):
                connection.cut(reason)
                num_cut += 1
                if num_cut % CUTS == 0:
                    await asyncio.sleep(0)
