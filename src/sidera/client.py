"""A client of ``sidera serve``, with nothing but the standard library.

    with sidera.Client("http://localhost:8000", key="sidera_...") as client:
        answer = client.recommend(user="ann", k=5)
        client.send_events("ann", ["cup-3"], [1_700_000_000], {"click": [1]}, request=answer.request, slots=[0])

Any number of threads may use one client; each has a connection of its own. A server that has too much to do says when
to come again, and the client does, a few times. Asking again costs nothing, and events are not kept twice.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from sidera.core import Clause, InputError, Recommendation, Request

Unknown = Literal["report", "refuse"]


class Denied(InputError):
    """The server asks for a key, or for one with another scope."""


class Unavailable(RuntimeError):
    """The server gave no answer: it cannot be reached, or had too much to do each time."""


class Client:
    """Asks one server."""

    def __init__(
        self, url: str, key: str = "", *, timeout: float = 10.0, retries: int = 3, deadline_ms: int | None = None
    ) -> None:
        """``timeout``: seconds that one try may take. ``deadline_ms``: after which an answer is of no use; what the
        server cannot meet, it refuses at once."""
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"the address {url!r}", allowed="http://HOST:PORT or https://HOST:PORT")
        self._secure, self._host, self._port = address.scheme == "https", address.hostname, address.port
        self._path, self._timeout, self._retries = address.path.rstrip("/"), timeout, retries
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        if deadline_ms is not None:
            self._headers["x-deadline-ms"] = str(deadline_ms)
        self._mine = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def recommend(
        self, history: Sequence[str] | None = None, *, user: str | None = None, k: int = 10,
        filter_seen: bool | None = None, exclude: Sequence[str] = (), unknown: Unknown = "report", **more: Any,
    ) -> Recommendation:  # fmt: skip
        """The answer to a history of item keys, or to a user whom the server's store knows. ``more``: feedback, times,
        profile, as_of, as in :class:`sidera.core.Request`. ``item_ids`` of the answer is empty: keys name items."""
        body = {"history": None if history is None else list(history), "user": user, "k": k, "filter_seen": filter_seen,
                "exclude": list(exclude), "unknown": unknown, **more}  # fmt: skip
        return _answer(self._call("POST", "/v1/recommend", body))

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation | InputError]:
        """Many requests in one call: an answer, or what is wrong, for each."""
        body = {"requests": [_body(request) for request in requests]}
        return [
            InputError(one["problem"]) if one["answer"] is None else _answer(one["answer"])
            for one in self._call("POST", "/v1/recommend/batch", body)["answers"]
        ]

    def send_events(
        self, user: str, items: Sequence[str], times: Sequence[int],
        feedback: Mapping[str, Sequence[float]] | None = None, *, unknown: Unknown = "report",
        request: str | None = None, slots: Sequence[int] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Events of a user, on the server's disk when this returns: how many are new and known, and unknown items."""
        body = {"user": user, "items": list(items), "times": list(times), "unknown": unknown, "request": request,
                "feedback": {name: list(values) for name, values in (feedback or {}).items()},
                "slots": list(slots)}  # fmt: skip
        found: dict[str, Any] = self._call("POST", "/v1/events", body)
        return found

    def health(self) -> dict[str, Any]:
        """What the server serves."""
        found: dict[str, Any] = self._call("GET", "/healthz", None)
        return found

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        content, problem = None if body is None else json.dumps(body).encode(), ""
        for number in range(self._retries + 1):
            wait = 0.05 * 2**number * random.uniform(0.5, 1.5)
            try:
                connection = self._connection()
                connection.request(method, self._path + path, content, self._headers)
                reply = connection.getresponse()
                text = reply.read().decode()
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                self._mine.connection.close()
            else:
                found = _decoded(text)
                if reply.status == 200:
                    return found
                problem = str(found.get("detail", text[:200]) if isinstance(found, dict) else text[:200])
                if reply.status in (401, 403):
                    raise Denied(problem)
                if 400 <= reply.status < 500 and reply.status not in (408, 429):
                    raise InputError(problem)
                wait = max(wait, float(reply.headers.get("retry-after") or 0) * random.uniform(0.5, 1.0))
            if number < self._retries:
                time.sleep(wait)
        raise Unavailable(f"{self._host} did not answer {method} {path} in {self._retries + 1} tries: {problem}")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            if self._secure:
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
            else:
                found = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
            self._mine.connection = found
            self._opened.append(found)
        return found


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _body(request: Request) -> dict[str, Any]:
    return {
        "history": None if request.user is not None else list(request.history), "user": request.user, "k": request.k,
        "filter_seen": request.filter_seen, "exclude": list(request.exclude), "as_of": request.as_of,
        "feedback": {name: list(values) for name, values in request.feedback.items()},
        "times": None if request.times is None else list(request.times), "profile": dict(request.profile),
        "unknown": "refuse" if request.refuse_unknown else "report",
        "filter": None if request.filter is None else {one.column: _condition(one) for one in request.filter.clauses},
    }  # fmt: skip


def _condition(clause: Clause) -> Any:
    """As :meth:`Filter.of` takes it."""
    if clause.is_range:
        ends = {"min": clause.low, "max": clause.high}
        return {name: end for name, end in ends.items() if end is not None}
    return {"not": list(clause.values)} if clause.negated else list(clause.values)


def _answer(found: Mapping[str, Any]) -> Recommendation:
    items = found["items"]
    return Recommendation(
        item_ids=(), item_keys=tuple(one["item"] for one in items), scores=tuple(one["score"] for one in items),
        titles=tuple(one["title"] for one in items), cold_start=found["cold_start"], unknown=tuple(found["unknown"]),
        unread=tuple(found["unread"]), filtered_seen=found["filtered_seen"], unknown_user=found["unknown_user"],
        items_version=found["items_version"], policy_version=found["policy_version"],
        expert_version=found["expert_version"] or "",
        reranker_version=found["reranker_version"] or "", codebook_id=found["codebook_id"],
        request=found["request"] or "", beam=found["beam"] or 0, eligible=found["eligible"],
        shadow_version=found["shadow_version"] or "",
    )  # fmt: skip
