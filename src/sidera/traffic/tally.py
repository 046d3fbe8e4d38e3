"""What came of the requests of a load: counts by status, exact percentiles of latency, goodput.

Latencies are seconds from the moment that a request was *meant* to leave. A generator that waits for a slow answer
before it sends the next request would otherwise leave out the wait of all the requests behind it ("coordinated
omission", G. Tene, 2013).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from sidera import console

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the ascending values that at least ``percent`` of them do not exceed; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered), max(1, math.ceil(len(ordered) * percent / 100))) - 1]


@dataclass
class KindTally:
    """Requests of one kind."""

    latencies: dict[int, array[float]] = field(default_factory=dict)  # status -> seconds of each answer
    errors: Counter[str] = field(default_factory=Counter)  # what came instead of an answer

    def answer(self, status: int, seconds: float) -> None:
        known = self.latencies.get(status)
        if known is None:
            known = self.latencies[status] = array("d")
        known.append(seconds)

    def of(self, statuses: Iterable[int]) -> list[float]:
        """Latencies of answers with these statuses, ascending."""
        return sorted(chain.from_iterable(self.latencies[status] for status in statuses))

    @property
    def successes(self) -> list[float]:
        return self.of(status for status in self.latencies if 200 <= status < 300)

    @property
    def refusals(self) -> list[float]:
        return self.of(status for status in self.latencies if not 200 <= status < 300)

    @property
    def num_requests(self) -> int:
        return sum(map(len, self.latencies.values())) + sum(self.errors.values())

    def within(self, slo: float) -> int:
        """Answers with a 2xx status within ``slo`` seconds."""
        return sum(seconds <= slo for seconds in self.successes)


@dataclass
class Tally:
    """What one measured window gave."""

    mode: str  # "closed, 16 clients" or "open, 200 requests/s"
    seconds: float = 0.0  # length of the window
    kinds: dict[str, KindTally] = field(default_factory=dict)
    cpu_seconds: float = 0.0  # of the generator itself, warm-up included
    waiting_cpu_seconds: float = 0.0  # of that, the kernel's for falling asleep and waking up
    num_sent: int = 0  # warm-up included
    stopped_early: bool = False
    samples: list[bytes] = field(default_factory=list)  # whole answers, where the caller wanted some

    def kind(self, name: str) -> KindTally:
        found = self.kinds.get(name)
        if found is None:
            found = self.kinds[name] = KindTally()
        return found

    def meets(self, slo: float, share: float = 0.99) -> bool:
        """Whether ``share`` of all requests were answered 2xx within ``slo`` seconds; the others count as late."""
        total = sum(kind.num_requests for kind in self.kinds.values())
        return not self.stopped_early and total > 0 and sum(k.within(slo) for k in self.kinds.values()) >= share * total

    def as_dict(self, slo: float) -> dict[str, Any]:
        """For JSON: milliseconds, requests a second."""
        return {
            "mode": self.mode,
            "seconds": round(self.seconds, 3),
            "slo_ms": 1000 * slo,
            "meets_slo": self.meets(slo),
            "kinds": {name: self._figures(kind, slo) for name, kind in sorted(self.kinds.items())},
            "generator_us_per_request": {
                "work": round(self._microseconds(self.cpu_seconds - self.waiting_cpu_seconds), 1),
                "waiting": round(self._microseconds(self.waiting_cpu_seconds), 1),
            },
        }

    def _figures(self, kind: KindTally, slo: float) -> dict[str, Any]:
        per_second = 1 / max(self.seconds, 1e-9)
        return {
            "requests": kind.num_requests,
            "statuses": {str(status): len(values) for status, values in sorted(kind.latencies.items())},
            "errors": dict(sorted(kind.errors.items())),
            "answers_per_second": round(len(kind.successes) * per_second, 2),
            "goodput_per_second": round(kind.within(slo) * per_second, 2),
            "latency_ms": latency_figures(kind.successes),
            "refusal_ms": latency_figures(kind.refusals) if kind.refusals else None,
        }

    def lines(self, slo: float) -> str:
        """A table for people."""
        rows = []
        for name, kind in sorted(self.kinds.items()):
            figures = self._figures(kind, slo)
            latency = figures["latency_ms"]
            row = [name, kind.num_requests, f"{figures['answers_per_second']:.1f}"]
            row += [f"{figures['goodput_per_second']:.1f}"]
            row += [_milliseconds(latency[key]) for key in ("p50", "p90", "p99", "p99.9", "max")]
            rows.append([*row, _counts(kind)])
        header = ["kind", "requests", "2xx/s", f"in {1000 * slo:g} ms/s", "p50 ms", "p90", "p99", "p99.9", "max"]
        work, waiting = self.cpu_seconds - self.waiting_cpu_seconds, self.waiting_cpu_seconds
        return (
            f"{self.mode}, {self.seconds:.1f} s\n{console.table([*header, 'what came'], rows)}\n"
            f"CPU of the generator: {self._microseconds(work):.0f} us a request, and"
            f" {self._microseconds(waiting):.0f} us of the kernel's to fall asleep and wake up"
        )

    def _microseconds(self, seconds: float) -> float:
        return 1e6 * seconds / max(1, self.num_sent)


def latency_figures(ordered: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds of ascending seconds; NaN where there are none."""
    figures = {f"p{percent:g}": percentile(ordered, percent) for percent in PERCENTILES}
    figures["mean"] = sum(ordered) / len(ordered) if ordered else math.nan
    figures["max"] = ordered[-1] if ordered else math.nan
    return {name: round(1000 * seconds, 3) for name, seconds in figures.items()}


def _milliseconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _counts(kind: KindTally) -> str:
    counts = [f"{status}: {len(values):,}" for status, values in sorted(kind.latencies.items())]
    return ", ".join([*counts, *(f"{name}: {count:,}" for name, count in sorted(kind.errors.items()))])
