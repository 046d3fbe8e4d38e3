"""What the process counted, as Prometheus reads it: ``GET /metrics``. Nothing here names a user, an item or a key."""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


@dataclass
class Durations:
    """A histogram of seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def saw(self, seconds: float) -> None:
        self.buckets[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        count = 0
        for bound, number in zip((*BOUNDS, "+Inf"), self.buckets, strict=True):
            count += number
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {count}"


class Metrics:
    """Counts of requests by path and status; only the event loop's thread writes them."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests: dict[tuple[str, int], int] = {}
        self.durations: dict[str, Durations] = {}
        self.body_bytes = 0  # held now, of bodies above the free size
        self.cut: dict[str, int] = {}  # connections that were cut, by reason

    def saw(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] = self.requests.get((path, status), 0) + 1
        if (durations := self.durations.get(path)) is None:
            durations = self.durations[path] = Durations()
        durations.saw(seconds)

    def cut_one(self, reason: str) -> None:
        self.cut[reason] = self.cut.get(reason, 0) + 1

    def lines(self) -> Iterator[str]:
        yield "# TYPE sidera_http_requests_total counter"
        for (path, status), number in sorted(self.requests.items()):
            yield f'sidera_http_requests_total{{path="{path}",status="{status}"}} {number}'
        yield "# TYPE sidera_http_request_seconds histogram"
        for path, durations in sorted(self.durations.items()):
            yield from durations.lines("sidera_http_request_seconds", f'path="{path}"')
        yield "# TYPE sidera_connections_cut_total counter"
        for reason, number in sorted(self.cut.items()):
            yield f'sidera_connections_cut_total{{reason="{reason}"}} {number}'
        yield from gauge("sidera_body_bytes", "bytes of large bodies held now", self.body_bytes)
        yield from gauge("process_resident_memory_bytes", "memory of the process", resident_bytes())
        yield from gauge("process_cpu_seconds_total", "CPU of the process", time.process_time(), kind="counter")
        yield from gauge("process_start_time_seconds", "unix seconds", self.started)


def gauge(name: str, text: str, value: float, kind: str = "gauge", labels: str = "") -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    yield f"{name}{labels} {value:.15g}"


def resident_bytes() -> int:
    """Memory of this process now; its peak where the system says no more, 0 where it says nothing."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
