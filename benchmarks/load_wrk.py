"""Claim `load_wrk`: `sidera load` measures what `wrk` measures.

    python benchmarks/load_wrk.py [--quick]

Both ask one `sidera serve` for /healthz in a closed loop of 8 clients, in turn (A B B A), and the medians of answers a
second and of p50 are compared. `wrk` is a C program of an event loop, so it is the faster of the two: a generator that
cost the server time, or that timed its answers late, would show here. The bars are ratios sidera/wrk.
"""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, finish

CLIENTS = 8
BAR = {"throughput": [0.9, 1.1], "p50": [0.9, 1.1]}
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # to milliseconds


def by_wrk(url: str, seconds: float) -> dict[str, float]:
    """Answers a second, p50 in ms, CPU us a request."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds:.0f}s", "--latency", f"{url}/healthz"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    number, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": rate, "p50": float(number) * UNITS[unit], "us": 1e6 * cpu / (rate * seconds)}


def by_sidera(address: Any, seconds: float) -> dict[str, float]:
    from sidera.traffic.client import Client
    from sidera.traffic.requests import get_requests

    tally = Client((address.host, address.port), get_requests(address, "/healthz")).closed(CLIENTS, seconds)
    figures = tally.as_dict(1.0)["kinds"]["/healthz"]
    us = 1e6 * tally.cpu_seconds / tally.num_sent
    return {"rate": figures["answers_per_second"], "p50": figures["latency_ms"]["p50"], "us": us}


def main() -> None:
    options = arguments(__doc__)
    if shutil.which("wrk") is None:
        sys.exit("load_wrk needs the program wrk (Debian: apt-get install wrk)")
    from servers import served

    seconds, rounds = (2.0, 4) if options.quick else (5.0, 12)
    rows: dict[str, list[dict[str, float]]] = {"wrk": [], "sidera": []}
    with tempfile.TemporaryDirectory(prefix="load-wrk-") as folder, served("tiny", Path(folder), log=False) as server:
        url = f"http://{server.address.host}:{server.address.port}"
        by_sidera(server.address, 1.0)
        for number in range(rounds):
            for name in ("wrk", "sidera") if number % 2 else ("sidera", "wrk"):
                measured = by_wrk(url, seconds) if name == "wrk" else by_sidera(server.address, seconds)
                rows[name].append(measured)
                print(f"{name:7s} {measured['rate']:8.1f}/s  p50 {measured['p50']:.3f} ms", flush=True)
    medians = {
        name: {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        for name, measured in rows.items()
    }
    value = {
        "throughput": round(medians["sidera"]["rate"] / medians["wrk"]["rate"], 3),
        "p50": round(medians["sidera"]["p50"] / medians["wrk"]["p50"], 3),
    }
    passed = all(low <= value[name] <= high for name, (low, high) in BAR.items())
    context = {"clients": CLIENTS, "seconds": seconds, "rounds": rounds, "medians": medians}
    finish("load_wrk", value, BAR, passed, context, options.quick, {"rows": rows})


if __name__ == "__main__":
    main()
