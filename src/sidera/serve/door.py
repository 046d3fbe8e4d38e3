"""The door: every request passes it, before anything of its body is read and before any route is looked for.

In this order: is the key good and has it the scope of the path (401, 403), has it asked too often (429), is the
announced body too large (413), may the engine take it at all (503, within milliseconds). Bodies are counted while they
arrive: one that grows above its limit is refused, and so is one that would bring all bodies together above theirs. A
body that ends early (the client left) reaches no route. What came of a request is counted, and logged where asked for,
without anything that names a person.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from sidera.serve.errors import Refused
from sidera.serve.keys import NOBODY, presented_key
from sidera.serve.state import Served
from sidera.serve.visit import BodyLimits, Visit, too_large


class Door:
    """ASGI middleware around the application."""

    def __init__(
        self,
        app: ASGIApp,
        served: Served,
        scopes: Callable[[str], str | None],
        admit: Mapping[str, Callable[[Scope, Visit], None]],
        log: TextIO | None = None,
    ) -> None:
        """``scopes``: path -> scope of a key that may ask for it (None: nobody needs one). ``admit``: path -> a check
        that raises Refused before the body is read."""
        self.app, self.served, self.scopes, self.admit, self.log = app, served, scopes, admit, log
        self.limits = BodyLimits(served.config.max_body_bytes, int(served.config.bodies_mb * 2**20))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = scope["visit"] = Visit(self.limits, self.served.metrics, scope, receive, send)
        try:
            self._enter(scope, visit)
            await self.app(scope, visit.receive, visit.send)
        except Refused as refusal:
            await refusal.response(scope, receive, visit.send)
        except ClientDisconnect:  # in the middle of its body: nobody waits for an answer
            pass
        except asyncio.CancelledError:  # the grace time is over
            if visit.status:
                raise
            await Refused(503, "the server is being stopped", 1).response(scope, receive, visit.send)
        finally:
            visit.leave()
            self._note(scope, visit, time.monotonic() - visit.begun)

    def _enter(self, scope: Scope, visit: Visit) -> None:
        path, headers = scope["path"], scope["headers"]
        needed = self.scopes(path)
        if self.served.keys is not None:
            visit.key = NOBODY
        if self.served.keys is not None and needed is not None:
            visit.key = self.served.keys.check(presented_key(headers), needed)
        for name, value in headers:
            if name == b"content-length":
                if value.isdigit() and (len(value) > 15 or int(value) > self.limits.one):
                    raise too_large(self.limits.one)
                break
        if (check := self.admit.get(path)) is not None:
            check(scope, visit)

    def _note(self, scope: Scope, visit: Visit, seconds: float) -> None:
        route = scope.get("route")
        path = "other" if route is None else route.path
        status = visit.status or 499  # the client left before it was answered
        self.served.metrics.saw(path, status, seconds)
        if self.served.tracer is not None:
            self.served.tracer.record(scope, visit, path, status)
        if self.log is not None:
            entry = {"time": round(time.time(), 3), "method": scope["method"], "path": path, "status": status,
                     "ms": round(1000 * seconds, 2), "bytes_in": visit.num_bytes,
                     "key": visit.key.name or None}  # fmt: skip
            self.log.write(json.dumps(entry) + "\n")
            self.log.flush()


def open_log(path: str) -> TextIO | None:
    """ "": none, "-": standard error, else a file that lines are added to."""
    return sys.stderr if path == "-" else open(path, "a", encoding="utf-8") if path else None
