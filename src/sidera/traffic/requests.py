"""The requests of a load: histories or users out of a data folder, or histories of the items that a server names.

Bodies are written before the load begins, so that writing them costs nothing while it runs.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sidera.core import InputError
from sidera.traffic.client import Prepared

NUM_REQUESTS = 20_000  # of a load, before the first comes again
MAX_EVENTS = 2_000_000  # of a data folder that are read
POPULAR = 1000  # items that a server names when it knows nothing of a user


class Address(NamedTuple):
    host: str
    port: int
    path: str  # that all requests begin with

    @classmethod
    def of(cls, url: str) -> Address:
        """InputError unless it is an http address."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise InputError(f"{url!r} is no address of a server", allowed="http://HOST:PORT")
        return cls(parts.hostname, port, parts.path.rstrip("/"))


@dataclass(frozen=True)
class Asked:
    """What the clients ask."""

    k: int = 10
    ask: str = "history"  # the history itself, or "user": whose history the server has
    length: int = 50  # events of a history, at most
    events_share: float = 0.0  # of requests that are POST /v1/events of one event
    headers: Sequence[str] = ()  # "Name: value" lines of every request
    fields: dict[str, Any] = field(default_factory=dict)  # more fields of every question


def http_request(address: Address, method: str, path: str, body: Any = None, headers: Sequence[str] = ()) -> bytes:
    """The bytes of a request; ``body`` is sent as JSON."""
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} {address.path}{path} HTTP/1.1", f"Host: {address.host}:{address.port}", *headers]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def get_requests(address: Address, path: str, headers: Sequence[str] = ()) -> list[Prepared]:
    """GET of one path, over and over."""
    return [Prepared(path, http_request(address, "GET", path, headers=headers))]


def questions(address: Address, histories: dict[str, list[str]], asked: Asked, seed: int = 0) -> list[Prepared]:
    """Questions about these users, and events of theirs, in random order."""
    draw, users = random.Random(seed), sorted(histories)
    items = sorted({item for history in histories.values() for item in history})
    bodies: dict[str, bytes] = {}
    found = []
    for _ in range(NUM_REQUESTS):
        user = draw.choice(users)
        if draw.random() < asked.events_share:
            found.append(Prepared("events", b"", _event(address, user, draw.choice(items), asked.headers)))
            continue
        if user not in bodies:
            who = {"user": user} if asked.ask == "user" else {"history": histories[user][-asked.length :]}
            body = {**who, "k": asked.k, **asked.fields}
            bodies[user] = http_request(address, "POST", "/v1/recommend", body, asked.headers)
        found.append(Prepared("recommend", bodies[user]))
    return found


def _event(address: Address, user: str, item: str, headers: Sequence[str]) -> Any:
    """Events of one user and item that are never the same twice: each call is another second."""
    last = int(time.time())

    def make(number: int) -> bytes:
        body = {"user": user, "items": [item], "times": [last - 10_000_000 + number]}
        return http_request(address, "POST", "/v1/events", body, headers)

    return make


def histories_of(folder: str | Path, most_users: int = 5000) -> dict[str, list[str]]:
    """Item keys of the first users of an imported data folder, oldest first."""
    import pyarrow.parquet as pq  # not at --help

    path = Path(folder) / "events.parquet"
    if not path.is_file():
        raise InputError(f"no events at {str(path)!r}", fix="give a folder that `sidera import` or `simulate` wrote")
    found: dict[str, list[str]] = {}
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=["user", "item"]):
        for user, item in zip(batch["user"].to_pylist(), batch["item"].to_pylist(), strict=True):
            if user not in found and len(found) == most_users:
                return found
            found.setdefault(user, []).append(item)
        number += len(batch)
        if number > MAX_EVENTS:
            break
    return found


def synthetic_histories(
    address: Address, headers: Sequence[str] = (), num_users: int = 5000, length: int = 20, seed: int = 0
) -> dict[str, list[str]]:
    """Histories of the server's most popular items, the more popular the more often (1/rank), of 1 to 2 ``length``
    events. InputError when the server does not answer."""
    answer = ask_json(address, "POST", "/v1/recommend", {"history": [], "k": POPULAR}, headers)
    items = [one["item"] for one in answer["items"]]
    draw, weights = random.Random(seed), [1 / rank for rank in range(1, len(items) + 1)]
    return {
        f"load-{user}": draw.choices(items, weights, k=draw.randint(1, 2 * length - 1)) for user in range(num_users)
    }


def ask_json(address: Address, method: str, path: str, body: Any = None, headers: Sequence[str] = ()) -> Any:
    """One request outside of the load -> its JSON answer; InputError unless it is 200."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    where = f"{method} http://{address.host}:{address.port}{address.path}{path}"
    named = dict(line.split(": ", 1) for line in headers)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, address.path + path, data, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        said = answer.read()
    except OSError as error:
        raise InputError(f"{where} fails: {error.strerror or error}", fix="start the server first") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise InputError(f"{where} is answered {answer.status}: {said[:200].decode(errors='replace')}")
    return json.loads(said)
