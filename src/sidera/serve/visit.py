"""One request on its way: who asks, until when, what of it has come, and what was answered.

The door puts it into the ASGI scope (``scope["visit"]``). What waits in the engine's queue for it is in ``tickets``, so
that whoever sees the client leave can take it back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request
from starlette.types import Message, Receive, Scope, Send

from sidera.engine.scheduler import Place, Ticket
from sidera.engine.timeline import Span
from sidera.serve.errors import Refused
from sidera.serve.keys import ANYONE
from sidera.serve.metrics import Metrics

SMALL_BODY = 2**16  # bytes of a body that is let in always


@dataclass(frozen=True)
class BodyLimits:
    """Bytes of one body, and of all above SMALL_BODY that are on their way at one time."""

    one: int
    all: int


class Visit:
    """Wraps ``receive`` and ``send`` of one request."""

    def __init__(self, limits: BodyLimits, metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
        self.limits, self.metrics, self.scope, self._receive, self._send = limits, metrics, scope, receive, send
        self.begun, self.deadline, self.priority = time.monotonic(), 0.0, 1
        self.key, self.tickets, self.spans = ANYONE, list[Ticket](), list[Span]()
        self.place: Place | None = scope.get("place")  # in the engine's queue, until the ticket comes
        self.num_bytes, self.held, self.status = 0, 0, 0  # of the body; of it counted; that went out
        self.whole = scope["method"] in ("GET", "HEAD")  # the body has come

    async def receive(self) -> Message:
        message = await self._receive()
        self.whole = not message.get("more_body", False)
        if message["type"] == "http.request" and (body := message.get("body")):
            self.num_bytes += len(body)
            if self.num_bytes > SMALL_BODY:
                self._hold()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.whole and (linger := self.scope.get("linger")) is not None:
                linger()
        await self._send(message)

    def leave(self) -> None:
        self.metrics.body_bytes -= self.held
        if self.place is not None:
            self.place.release()

    def _hold(self) -> None:
        """Count what has come; Refused where it is too much."""
        if self.num_bytes > self.limits.one:
            raise too_large(self.limits.one)
        if self.metrics.body_bytes + self.num_bytes - self.held > self.limits.all:
            raise Refused(503, "too many large bodies are on their way", 1)
        self.metrics.body_bytes += self.num_bytes - self.held
        self.held = self.num_bytes


def visit_of(request: Request) -> Visit:
    visit: Visit = request.scope["visit"]
    return visit


def too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit:,} bytes; fix: send the newest events only")
