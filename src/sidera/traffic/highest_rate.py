"""The highest rate of a Poisson stream at which a server still answers in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidera.traffic.tally import Tally

SHARE = 0.99  # of requests that are answered 2xx within the SLO: p99 <= SLO, refusals and errors counted as late
PRECISION = 1.04  # where the search ends: ratio of the lowest rate that failed to the highest that did not
LONGER = 2.0  # the window that confirms the rate, in windows of the search


@dataclass
class HighestRate:
    """What the search found."""

    rate: float  # requests a second; 0: not even the first rate was met
    confirmed: Tally | None  # the longer window at this rate
    tried: list[tuple[float, bool]]  # every window: rate, whether it was met


def highest_rate(
    window: Callable[[float, float], Tally], slo: float, first: float, seconds: float, precision: float = PRECISION
) -> HighestRate:
    """Double the rate until it fails, halve the gap until it is narrow, confirm over a longer window.

    ``window(rate, seconds)`` runs one load. A window that fails is repeated once, because a neighbour on the machine
    may have had its share of it. A rate that the longer window does not confirm is lowered, step by step.
    """
    tried: list[tuple[float, bool]] = []

    def met(rate: float) -> bool:
        for _ in range(2):
            tried.append((rate, window(rate, seconds).meets(slo, SHARE)))
            if tried[-1][1]:
                return True
        return False

    low, high = 0.0, first
    while met(high):
        low, high = high, 2 * high
    while high > 1.0 and (low == 0.0 or high / low > precision):
        middle = high / 2 if low == 0.0 else (low * high) ** 0.5
        low, high = (middle, high) if met(middle) else (low, middle)
    while low > 1.0:
        tally = window(low, LONGER * seconds)
        tried.append((low, tally.meets(slo, SHARE)))
        if tried[-1][1]:
            return HighestRate(low, tally, tried)
        low /= precision
    return HighestRate(0.0, None, tried)
