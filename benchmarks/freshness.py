"""Claim `freshness`: an event is in the next answer, under load, within 50 ms.

    python benchmarks/freshness.py [--quick] [--rate R] [--runs FOLDER]

While other users ask in an open loop, one client sends an event of the first item of a user's answer and, as soon as it
is acknowledged, asks for that user with `filter_seen`. The item must be gone from the answer: that proves that the
event was read. Timed is from sending the event to having the answer, over one connection. The load's rate is half the
highest within 100 ms. The run is exported first, as in production (not with `--quick`: that alone takes a minute).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import arguments, finish
from overload import Loaded
from servers import exported, made, served

LOAD, QUICK_RATE = 0.5, 20.0
BAR = {"p99_ms": 50.0, "stale": 0}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, help="requests/s of the others (else half the highest within 100 ms)")
    parser.add_argument("--runs", help="folder that keeps the run folder; no result is kept")


class Asking:
    """One connection."""

    def __init__(self, address: Any) -> None:
        self.connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
        self.connection.connect()

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        said = json.loads(answer.read())
        if answer.status != 200:
            raise SystemExit(f"{path} is answered {answer.status}: {said}")
        return said


@dataclass(frozen=True)
class Elsewhere:
    """A server that another process started."""

    address: Any
    pid: int

    @property
    def rss(self) -> int:
        from sidera.traffic.server import resident_bytes

        return resident_bytes(self.pid)


def background(server: Elsewhere, folder: Path, rate: float, seconds: float, begun: Any) -> None:
    """The others, in a process of their own."""
    loaded = Loaded(server, folder)
    begun.set()
    loaded.window(rate, seconds)


def measure(address: Any, users: list[str], seconds: float) -> tuple[list[float], int]:
    """Seconds of every round, and answers that still held the item."""
    asking, waited, stale = Asking(address), [], 0
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        user, number = users[number % len(users)], number + 1
        first = asking("/v1/recommend", {"user": user, "filter_seen": True})["items"][0]["item"]
        event = {"user": user, "items": [first], "times": [int(time.time())]}
        begun = time.perf_counter()
        asking("/v1/events", event)
        answer = asking("/v1/recommend", {"user": user, "filter_seen": True})
        waited.append(time.perf_counter() - begun)
        stale += first in [one["item"] for one in answer["items"]]
        time.sleep(0.02)
    return sorted(waited), stale


def main() -> None:
    options = arguments(__doc__, flags)
    from sidera.traffic.requests import histories_of
    from sidera.traffic.tally import latency_figures

    seconds = 10.0 if options.quick else 60.0
    with contextlib.ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory(prefix="freshness-")))
        folder = runs / "demo_onerec_v2-fresh"
        made("demo_onerec_v2", folder)
        programs = "" if options.quick else exported(folder / "run")
        server = stack.enter_context(served("demo_onerec_v2", folder))
        searched = 0.0 if options.quick or options.rate else Loaded(server, folder).highest_rate(4.0)
        rate = options.rate or LOAD * searched or QUICK_RATE
        context = multiprocessing.get_context("spawn")
        begun = context.Event()
        words = (Elsewhere(server.address, server.process.pid), folder, rate, seconds + 2, begun)
        others = context.Process(target=background, args=words, daemon=True)
        others.start()
        try:
            begun.wait(60)
            waited, stale = measure(server.address, list(histories_of(folder / "data")), seconds)
        finally:
            others.kill()
            others.join()
    figures = latency_figures(waited)
    value = {"p99_ms": figures["p99"], "stale": stale}
    passed = value["p99_ms"] <= BAR["p99_ms"] and not stale
    said = {"rate": round(rate, 1), "rounds": len(waited), "milliseconds": figures, "programs": programs}
    finish("freshness", value, BAR, passed, said, options.quick or bool(options.runs))


if __name__ == "__main__":
    main()
