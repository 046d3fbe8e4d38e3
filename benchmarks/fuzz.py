"""Claim `fuzz`: whatever comes over the wire is answered, by a status that is documented, and nothing stays behind.

    python benchmarks/fuzz.py [--quick] [--cases N] [--minutes M] [--seed S] [--runs FOLDER]

A server of its own process is asked over sockets. One in five cases is what the API's description allows, and much
that it does not (schemathesis), for every route. The others are hostile: good calls in whose JSON values are replaced
by odd ones, and a corpus of calls (deep nesting, halves of characters, numbers without end, wrong lengths, chunks,
pipelines, path tricks, wrong keys) of which bytes are changed, left out, repeated or cut off.

A case fails by a 5xx that is not a documented 503, a status that the description of its route does not name, an answer
of another shape, no answer within SECONDS, or a connection that is reset before an answer. A call that was cut off may
be left without one. Resident memory at the end is held against that after a fifth of the cases. Both are read when the
server has had QUIET seconds of rest, after which it gives back what a rush left: what stays then is kept. At the end it
is started again on what it left: run, items, store and exposures. Kinds of failures are printed with one case each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import arguments, finish
from servers import served

CASES, QUICK_CASES, SCHEMA_SHARE = 50_000, 2_000, 0.2
SECONDS = 10.0  # that an answer may take
QUIET = 11.0  # seconds before memory is read; a server that had 5 without a request gives memory back
CHUNK = 50  # cases of one route at a time
DEAR = {"/v1/admin/export": (1, 120.0), "/v1/admin/swap": (5, 60.0), "/v1/admin/trial": (5, 60.0)}  # cases, seconds
BAR = {"failed": 0, "memory_growth": 0.1}
ALWAYS = {400, 404, 405, 408, 413, 422, 431, 503}  # that an HTTP server may say to what is no call of the API
HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, help=f"how many (else {CASES:,}, {QUICK_CASES:,} with --quick)")
    parser.add_argument("--minutes", type=float, help="end after so long, with as many cases as there were")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    parser.add_argument("--runs", help="folder that keeps the run folder; no result is kept")


class Failures:
    """Kinds of failures, with the first case of each."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, case: str) -> None:
        self.kinds[kind] += 1
        if kind not in self.first:
            self.first[kind] = case[:2000]
            print(f"FAILED {kind}\n  {case[:600]}", flush=True)


# --- by the description ---------------------------------------------------------------------------------------------


def described(address: Any, seed: int, failures: Failures) -> Iterator[int]:
    """Cases of every route in turn -> how many were sent since the last time."""
    import schemathesis
    from schemathesis.core.result import Ok

    checks = schemathesis.checks
    held = [
        checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]  # fmt: skip
    api = schemathesis.openapi.from_url(f"http://{address.host}:{address.port}/openapi.json")
    operations = [found.ok() for found in api.get_all_operations() if isinstance(found, Ok)]
    for turn in range(10**6):
        for operation in operations:
            yield one_route(operation, held, seed * 10**6 + turn, failures)


def one_route(operation: Any, held: list[Any], seed: int, failures: Failures) -> int:
    import requests
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    sent = [0]
    cases, seconds = DEAR.get(operation.path, (CHUNK, SECONDS))

    @seeded(seed)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def holds(case: Any) -> None:
        sent[0] += 1
        where = f"{operation.method.upper()} {operation.path}"
        try:
            response = case.call(timeout=seconds)
        except requests.exceptions.ReadTimeout:
            failures.add(f"hang: {where}", case.as_curl_command())
            return
        except requests.exceptions.ConnectionError as error:
            failures.add(f"reset: {where}", f"{error}; {case.as_curl_command()}")
            return
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, ValueError, UnicodeError):
            return  # the client cannot send it
        if response.status_code >= 500 and response.status_code != 503:
            failures.add(f"{response.status_code}: {where}", case.as_curl_command())
            return
        try:
            case.validate_response(response, checks=held)
        except BaseException as error:
            title = str(error).splitlines()[0] if str(error) else type(error).__name__
            failures.add(f"{title}: {where} {response.status_code}", f"{error}\n{case.as_curl_command()}")

    holds()
    return sent[0]


# --- hostile bytes --------------------------------------------------------------------------------------------------


def call(path: bytes, body: bytes, method: bytes = b"POST", headers: bytes = b"") -> bytes:
    head = method + b" " + path + b" HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n" + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def bodies() -> list[bytes]:
    deep = 20_000
    return [
        b'{"history": ["item0000001"], "k": 5}',
        b'{"user": "user1", "k": 3, "filter_seen": false}',
        b"", b"{", b"null", b"[]", b'"a"', b"1", b"nan", b"{}" * 9, b"\xef\xbb\xbf{}", b"\xff\xfe", b"\x00" * 50,
        b"[" * deep, b"[" * deep + b"]" * deep, b'{"history":' * deep, b'{"history": [' + b"[" * deep + b"]",
        b'{"history": ["' + b"\\ud800" * 40 + b'"]}', b'{"user": "\\udfff"}', b'{"user": "\\u0000"}',
        b'{"history": [], "k": 1e400}', b'{"history": [], "k": ' + b"9" * 5000 + b"}", b'{"history": [], "k": -0}',
        b'{"history": [], "k": 5, "k": 6}', b'{"history": [], "as_of": 99999999999999999999}',
        b'{"history": ["a"], "times": [NaN]}', b'{"history": ["a"], "feedback": {"x": [Infinity]}}',
        b'{"history": [], "filter": {"item": {"not": ["a"]}, "popularity": {"min": 1e308, "max": -1e308}}}',
        b'{"history": [], "filter": {"\\ud800": "x"}}', b'{"history": [], "profile": {"a": {"b": [1]}}}',
        b'{"user": "u", "items": ["item0000001"], "times": [5], "request": "x", "slots": [0]}',
        b'{"user": "u", "items": ["' + b"x" * 70_000 + b'"], "times": [5]}',
        b'{"user": "u", "items": ["item0000001", "item0000002"], "times": [5]}',
        b'{"items": [{"item": "a", "vector": [1e39]}]}', b'{"items": [{"item": "a", "fields": {"b": [[1]]}}]}',
        b'{"requests": [' + b'{"history": []},' * 300 + b'{"history": []}]}', b'{"name": "../../etc", "since": 1}',
        b'{"item": "item0000001", "history": ["item0000001"]}', b'{"items": ["item0000001"], "history": []}',
    ]  # fmt: skip


PATHS = (
    b"/v1/recommend", b"/v1/recommend/batch", b"/v1/events", b"/v1/items", b"/v1/score", b"/v1/related",
    b"/v1/explain", b"/v1/admin/export", b"/v1/admin/swap",
)  # fmt: skip
ODD_PATHS = (
    b"/", b"//", b"/..", b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/recommend/", b"/v1//recommend",
    b"/static/../app.py", b"/docs%00", b"/healthz?" + b"a=b&" * 2000, b"/v1/popular?k=%ff&event=%00", b"*",
    b"http://other/v1/recommend", b"/v1/similar?item=%ED%A0%80", b"/v1/history?user=%00&n=1", b"/" + b"a" * 60_000,
    b"/v1/popular?window=day&seconds=9", b"/v1/search?text=" + b"%F0%9F%98%80" * 30, b"/\xff\xfe",
)  # fmt: skip


def corpus() -> list[bytes]:
    """Calls; each is complete or wrong in a way that an answer, or the end of the connection, must follow."""
    good = bodies()[0]
    found = [call(path, body) for path in PATHS for body in bodies()]
    found += [call(path, good, method) for path in ODD_PATHS for method in (b"GET", b"POST")]
    found += [call(b"/v1/recommend", good, method) for method in (b"PUT", b"TRACE", b"CONNECT", b"BREW", b"get", b"")]
    odd_headers = (
        b"X-Deadline-Ms: -1\r\n", b"X-Deadline-Ms: \xb2\r\n", b"X-Deadline-Ms: 99999999999999\r\n",
        b"X-Priority: highest\r\n", b"X-Priority:\r\n", b"Authorization: Bearer \xff\r\n",
        b"X-API-Key: " + b"k" * 9000 + b"\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Content-Encoding: gzip\r\n", b"Content-Length: 3\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n", b"X: " + b"y" * 70_000 + b"\r\n",
        b"A: b\r\n" * 2000, b"X-\x00: 1\r\n", b" folded\r\n", b"traceparent: 00-zz\r\n",
    )  # fmt: skip
    found += [call(b"/v1/recommend", good, headers=one) for one in odd_headers]
    found += [
        HEAD + b"Content-Length: " + length + b"\r\n\r\n" + good
        for length in (b"-1", b"1e3", b"+5", b"99999999999999999999", b"0x10", b"3")
    ]
    chunk = b"%x\r\n" % len(good) + good + b"\r\n"
    chunks = (
        chunk + b"0\r\n\r\n",
        chunk + b"0\r\nX: y\r\n\r\n",
        b"zz\r\n",
        b"ffffffffffffffff\r\n" + good,
        b"-1\r\n\r\n",
        b"0\r\n\r\n",
    )
    found += [HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + one for one in chunks]
    found += [
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunks[0],
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    ]
    found += [
        call(b"/v1/recommend", good) * 20,
        call(b"/healthz", b"", b"GET") * 200,
        b"\r\n" * 50 + call(b"/healthz", b"", b"GET"),
    ]
    found += [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 1000,
        b"GET /healthz\r\n\r\n",
    ]
    found += [b"GET /healthz HTTP/9.9\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n", b"GET /healthz HTTP/1.1\n\n"]
    return found


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Some bytes of a call are changed; one in five calls stays as it is."""
    out = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        place = draw.randrange(len(out) + 1)
        kind = draw.randrange(5)
        if kind == 0 and out:
            out[min(place, len(out) - 1)] = draw.randrange(256)
        elif kind == 1:
            out[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        elif kind == 2:
            del out[place : place + draw.randrange(1, 20)]
        elif kind == 3:
            out[place:place] = out[max(0, place - draw.randrange(1, 200)) : place]
        else:
            del out[place:]
    return bytes(out)


GOOD: dict[bytes, Any] = {
    b"/v1/recommend": {
        "history": ["item0000001", "item0000002"], "k": 5, "filter_seen": True, "exclude": ["item0000001"],
        "times": [5, 6], "filter": {"item": {"not": ["item0000002"]}, "popularity": {"min": 1}}, "as_of": 7,
        "profile": {"region": "south"},
        "feedback": {"click": [1, 0]}, "unknown": "report",
    },
    b"/v1/recommend/batch": {"requests": [{"history": ["item0000001"]}, {"user": "u1", "k": 3}]},
    b"/v1/events": {
        "user": "u1", "items": ["item0000001"], "times": [1_600_000_000], "unknown": "report", "request": None,
        "slots": [], "feedback": {},
    },
    b"/v1/items": {
        "items": [{"item": "new", "title": "a title", "fields": {"creator": "c", "tags": ["x", "y"]}, "vector": None}],
        "removed": ["nobody"], "version": None,
    },
    b"/v1/score": {"items": ["item0000001", "item0000002"], "history": ["item0000001"], "sort": True},
    b"/v1/related": {"items": ["item0000001", "item0000002"], "k": 3},
    b"/v1/explain": {"item": "item0000001", "history": ["item0000002", "item0000001"]},
    b"/v1/admin/trial": {"version": 7, "share": 0.5, "side": "shadow"},
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e308, -1e308, 5e-324, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**400, float("nan"),
    float("inf"), "", " ", "\x00", "\ud800", "a\udfff", "\U0001f600" * 9, "x" * 5000, "item0000001", "1", "nan", [], {},
    [[]], [None], [{}], ["item0000001"] * 2000, {"": None}, {"a": {"b": {"c": []}}}, {"min": 5, "max": 1}, {"not": []},
)  # fmt: skip


def odd(draw: random.Random, value: Any) -> Any:
    """A value in which one part is another, is not there, or is there twice."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        rest = {one: part for one, part in value.items() if one != name}
        choice = draw.randrange(12)
        if choice == 0:
            return rest
        return (
            rest | {draw.choice(("extra", "\ud800", "")): value[name]}
            if choice == 1
            else rest | {name: odd(draw, value[name])}
        )
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        more = value[place:] if draw.random() < 0.2 else value[place + 1 :]
        return [*value[:place], odd(draw, value[place]), *more]
    return draw.choice(ODD)


def odd_call(draw: random.Random, keys: list[str]) -> bytes:
    path, body = draw.choice(list(GOOD.items()))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        body = odd(draw, body)
    text = (
        json.dumps(body).encode()
        if draw.random() < 0.7
        else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    )
    return call(path, named(text, keys), headers=b"Connection: close\r\n")


def named(data: bytes, keys: list[str]) -> bytes:
    """Items that the catalogue has in place of those of the corpus."""
    return data.replace(b"item0000001", keys[0].encode()).replace(b"item0000002", keys[1].encode())


def hostile(address: Any, seed: int, failures: Failures) -> Iterator[int]:
    """Changed calls of the corpus; items that the catalogue has stand in them."""
    from sidera.traffic.requests import ask_json

    draw, keys = random.Random(seed), [one["item"] for one in ask_json(address, "GET", "/v1/popular?k=2")["items"]]
    every = [named(one, keys) for one in corpus()]
    while True:
        for number in range(CHUNK):
            if number % 2:
                one_call(address, odd_call(draw, keys), "close", failures)
            else:
                end = "shut" if draw.random() < 0.9 else "open"
                one_call(address, mutated(draw, draw.choice(every)), end, failures)
        yield CHUNK


def one_call(address: Any, data: bytes, end: str, failures: Failures) -> None:
    """``end``: the call is whole and asks to "close"; or the client says that it sends no more ("shut"), or nothing."""
    shown, said = repr(data[:1500]), b""
    try:
        with socket.create_connection((address.host, address.port), SECONDS) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered before the end
                sock.sendall(data)
                if end == "shut":
                    sock.shutdown(socket.SHUT_WR)
            sock.settimeout(0.05 if end == "open" else SECONDS)
            while piece := sock.recv(1 << 16):
                said += piece
    except TimeoutError:
        if end != "open":  # else it waits for the rest of the call, or keeps the connection for the next
            failures.add("hang: bytes", shown)
    except ConnectionResetError:
        if not said:
            failures.add("reset: bytes", shown)
    except OSError as error:
        failures.add(f"connection: {type(error).__name__}", shown)
    if end == "close" and not said:
        failures.add("no answer: a whole call", shown)
    if said:
        status = said[9:12].decode("latin-1")
        if not said.startswith(b"HTTP/1.1 ") or not status.isdigit():
            failures.add("no HTTP: bytes", f"{said[:200]!r} to {shown}")
        elif not (
            int(status) in ALWAYS or 200 <= int(status) < 300 or int(status) in (100, 101, 307, 401, 403, 409, 429)
        ):
            failures.add(f"{status}: bytes", shown)


def start_again(folder: Path, failures: Failures) -> None:
    """The server opens what it left, and answers."""
    from sidera.traffic.requests import ask_json

    try:
        with served(folder.name, folder) as server:
            ask_json(server.address, "GET", "/v1/popular?k=2")
    except (Exception, SystemExit) as error:
        failures.add("it does not start again", repr(error))


# --- both -----------------------------------------------------------------------------------------------------------


def rested(server: Any) -> int:
    """Resident bytes after a rest; 0 where the server has ended."""
    time.sleep(QUIET)
    return 0 if server.process.poll() is not None else server.rss


def main() -> None:
    options = arguments(__doc__, flags)
    wanted = options.cases or (QUICK_CASES if options.quick else CASES)
    failures, counts, memory = Failures(), {"described": 0, "hostile": 0}, list[int]()
    with contextlib.ExitStack() as folders, contextlib.ExitStack() as stack:
        runs = Path(options.runs or folders.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        server = stack.enter_context(served("demo_onerec_v2", runs / "demo_onerec_v2"))
        sources = {
            "described": described(server.address, options.seed, failures),
            "hostile": hostile(server.address, options.seed, failures),
        }
        began, told, first = time.monotonic(), 0.0, 0
        end = began + 60 * options.minutes if options.minutes else float("inf")
        while (total := sum(counts.values())) < wanted and time.monotonic() < end:
            name = "described" if counts["described"] <= SCHEMA_SHARE * total else "hostile"
            counts[name] += next(sources[name])
            if server.process.poll() is not None:
                failures.add("the server ended", str(server.process.returncode))
                break
            memory.append(server.rss)
            if not first and sum(counts.values()) >= wanted / 5:
                first = rested(server)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{total:,} of {wanted:,} cases, {total / (told - began + 1e-9):.0f}/s, "
                      f"{sum(failures.kinds.values())} failed, {memory[-1] >> 20} MB", flush=True)  # fmt: skip
        last = rested(server)
        stack.close()
        start_again(runs / "demo_onerec_v2", failures)
    growth = round(last / (first or memory[len(memory) // 5]) - 1, 4)  # a run that --minutes ended may have no first
    value = {"failed": sum(failures.kinds.values()), "memory_growth": growth}
    passed = all(value[name] <= bar for name, bar in BAR.items())
    context = {"cases": counts, "seed": options.seed, "kinds": dict(failures.kinds), "memory_mb": last >> 20,
               "most_memory_mb": max(memory) >> 20}  # fmt: skip
    details = {"first": failures.first}
    print(json.dumps(details["first"], indent=1)[:8000] if failures.first else "no case failed", flush=True)
    partial = options.quick or bool(options.runs or options.cases or options.minutes)
    finish("fuzz", value, BAR, passed, context, partial, details)


if __name__ == "__main__":
    main()
