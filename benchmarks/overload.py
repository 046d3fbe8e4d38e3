"""Claim `overload`: a server under five times what it bears goes on answering, and recovers; bodies do not eat it.

    python benchmarks/overload.py [--quick] [--ref COMMIT] [--runs FOLDER]

* *overload*: the highest rate within 100 ms is found (x1). Then x5 for a minute and x1 again, /healthz asked ten times
  a second beside. Clients say that they wait 100 ms (``X-Deadline-Ms``). Goodput is answers within 100 ms a second,
  against that of x1 before; refusals (4xx, 5xx) and /healthz have their p99; resident memory after the last window is
  held against that before the x5.
* *bodies*: 24 bodies of 32 MB, 3,000 connections whose header never ends and 300 that send half of their body, all at
  once, while others ask at half of x1. Resident memory at its peak against before, and the others' p99 against their
  p99 without.

`--ref` puts another commit's server through the same, behind this one's; it has no bars.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from before_after import other_tree
from harness import arguments, finish, said
from servers import ROOT, served, users_of

SLO = 0.1
TIMES = 5  # what it bears
HEALTH_RATE = 10.0
BODIES, BODY_BYTES, SLOW_HEADERS, HALF_BODIES = 24, 32 * 2**20 - 4096, 3000, 300
FIRST_RATE = 20.0
BAR = {
    "goodput": 0.8, "refusal_p99_ms": 50.0, "healthz_p99_ms": 50.0, "goodput_after": 0.8, "memory_after": 1.1,
    "bodies_memory_mb": 500.0, "bodies_p99_times": 3.0,
}  # fmt: skip
AT_LEAST = ("goodput", "goodput_after")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ref", help="another commit, put through the same")
    parser.add_argument("--runs", help="folder that keeps the run folders; no result is kept")
    parser.add_argument("--rate", type=float, help="x1, requests/s (else it is searched)")


class Loaded:
    """One server and who asks it; RSS is watched from beside."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server, self.address = server, server.address
        self.requests = users_of(folder, headers=[f"X-Deadline-Ms: {1000 * SLO:g}"])(self.address)

    def window(self, rate: float, seconds: float, *, health: bool = False, **search: Any) -> Any:
        from sidera.traffic.client import Client
        from sidera.traffic.requests import get_requests

        requests = self.requests
        if health:  # every n-th request asks for /healthz instead
            every = max(2, round(rate / HEALTH_RATE))
            (healthz,) = get_requests(self.address, "/healthz")
            requests = [healthz if number % every == 0 else one for number, one in enumerate(requests)]
        client = Client((self.address.host, self.address.port), requests, timeout=10.0, max_connections=1000)
        begun = f"{rate:.1f} requests/s for {seconds:g} s"
        with said(lambda: f"{begun}: {client.tally.num_sent} sent, {self.server.rss >> 20} MB"):
            tally = client.open(rate, seconds, 0.5, **search)
        answered = {name: (len(kind.successes), p99_ms(kind.successes)) for name, kind in tally.kinds.items()}
        print(f"{begun}: answers and their p99 in ms: {answered}, {self.server.rss >> 20} MB", flush=True)
        return tally

    def highest_rate(self, seconds: float) -> float:
        from sidera.traffic.highest_rate import SHARE, highest_rate

        search: dict[str, Any] = {"slo": SLO, "miss_share": 1 - SHARE}
        return highest_rate(lambda rate, span: self.window(rate, span, **search), SLO, FIRST_RATE, seconds, 1.2).rate


def goodput(tally: Any) -> float:
    return tally.as_dict(SLO)["kinds"]["recommend"]["goodput_per_second"]


def p99_ms(seconds: list[float]) -> float:
    from sidera.traffic.tally import percentile

    return round(1000 * percentile(sorted(seconds), 99), 1) if seconds else 0.0


def overload(loaded: Loaded, rate: float, seconds: float) -> dict[str, Any]:
    """x1, x5, x1."""
    before = loaded.window(rate, seconds, health=True)
    memory = loaded.server.rss
    during = loaded.window(TIMES * rate, 2 * seconds if seconds < 30 else 60.0, health=True)
    after = loaded.window(rate, seconds, health=True)
    asked = during.kinds["recommend"]
    statuses = {status: len(values) for status, values in asked.latencies.items()}
    return {
        "goodput": round(goodput(during) / max(1e-9, goodput(before)), 3),
        "refusal_p99_ms": p99_ms(asked.refusals),
        "healthz_p99_ms": p99_ms(during.kinds["/healthz"].successes) if not during.kinds["/healthz"].errors else 1e4,
        "goodput_after": round(goodput(after) / max(1e-9, goodput(before)), 3),
        "memory_after": round(loaded.server.rss / memory, 3),
        "asked": {"rate": rate, "statuses": statuses, "errors": dict(asked.errors), "p99_ms": p99_ms(asked.successes)},
    }


def bodies(loaded: Loaded, rate: float, seconds: float) -> dict[str, Any]:
    """The others' p99 and the server's memory while it is fed."""
    quiet = loaded.window(rate / 2, seconds)
    memory, peak, over = loaded.server.rss, [loaded.server.rss], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], loaded.server.rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    context = multiprocessing.get_context("spawn")
    counted, ready = context.Queue(), context.Event()
    address = (loaded.address.host, loaded.address.port)
    attacker = context.Process(target=attack, args=(address, seconds, ready, counted), daemon=True)
    attacker.start()
    ready.wait(30)
    try:
        fed = loaded.window(rate / 2, seconds)
        counts = counted.get(timeout=60)
    finally:
        attacker.kill()
        attacker.join()
        over.set()
        watcher.join()
    times = p99_ms(fed.kinds["recommend"].successes) / max(1e-9, p99_ms(quiet.kinds["recommend"].successes))
    lost = sum(fed.kinds["recommend"].errors.values())
    return {
        "bodies_memory_mb": round((peak[0] - memory) / 2**20, 1),
        "bodies_p99_times": round(times, 2) if not lost else 1e3,
        "large_bodies": {"attack": counts, "lost": lost, "memory_end_mb": round((loaded.server.rss - memory) / 2**20)},
    }


def attack(address: tuple[str, int], seconds: float, ready: Any, counted: Any) -> None:
    """In a process of its own: the three kinds at once for so many seconds; says what came of them.

    It yields the cores to the server and says what it took of them: attackers bring machines of their own.
    """
    os.nice(19)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    end = time.monotonic() + seconds
    statuses: Counter[str] = Counter()
    keys = json.dumps({"history": ["x" * 20] * (BODY_BYTES // 24), "k": 10}).encode()
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(keys) + keys
    half = head + b"Content-Length: 1000000\r\n\r\n" + b"{" + b" " * 500_000

    def large() -> None:
        try:
            with socket.create_connection(address, 30) as sock:
                sock.sendall(whole)
                statuses[sock.recv(1 << 16)[9:12].decode() or "closed"] += 1
        except OSError as error:
            statuses[type(error).__name__] += 1

    ready.set()
    for _ in range(BODIES):
        threading.Thread(target=large, daemon=True).start()
    unsent = {}
    for number in range(SLOW_HEADERS + HALF_BODIES):  # all at once; the system connects them as the server accepts
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        unsent[sock] = half if number % (1 + SLOW_HEADERS // HALF_BODIES) == 0 else head + b"X-Slow: "
    begun, closed = set(), 0
    while time.monotonic() < end:  # a byte now and then keeps a naive time-out from firing
        for sock in list(unsent):
            try:
                sock.send(b"x" if sock in begun else unsent[sock])
                begun.add(sock)
            except BlockingIOError:
                continue
            except OSError:
                closed += sock in begun
                del unsent[sock]
        time.sleep(1.0)
    cpu = round(time.process_time(), 2)
    counted.put({"begun": len(begun), "closed by the server": closed, "large bodies": dict(statuses), "cpu_s": cpu})
    time.sleep(60)  # until it is killed: the connections stay open while the others are measured


def put_through(tree: Path, folder: Path, rate: float | None, quick: bool) -> dict[str, Any]:
    """Both, on a server of its own each."""
    seconds = 4.0 if quick else 30.0
    with served("demo_onerec_v2", folder, tree) as server:
        loaded = Loaded(server, folder)
        rate = rate or loaded.highest_rate(1.5 if quick else 4.0)
        print(f"x1: {rate:.1f} requests/s", flush=True)
        found = overload(loaded, rate, seconds)
        print(found, flush=True)
    with served("demo_onerec_v2", folder, tree) as server:
        found |= bodies(Loaded(server, folder), rate, seconds)
        print(found, flush=True)
    return found


def main() -> None:
    options = arguments(__doc__, flags)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        runs = Path(options.runs) if options.runs else scratch
        after = put_through(ROOT, runs / "demo_onerec_v2-after", options.rate, options.quick)
        before = None
        if options.ref:
            tree, _ = stack.enter_context(other_tree(options.ref, scratch))
            before = put_through(tree, runs / "demo_onerec_v2-before", options.rate, options.quick)
    value = {name: after[name] for name in BAR}
    passed = all(value[name] >= bar if name in AT_LEAST else value[name] <= bar for name, bar in BAR.items())
    context = {"ref": options.ref, "times": TIMES, "after": after, "before": before}
    finish("overload", value, BAR, passed, context, options.quick or bool(options.runs))


if __name__ == "__main__":
    main()
