"""Scales and ticks of the charts: from values to shares of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A range of values, ``low < high``; on a logarithmic axis both are above 0."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies: 0 at ``low``, 1 at ``high``; outside it is put at the edge."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, number: int = 5) -> list[float]:
        """Round values inside the range."""
        return _log_ticks(self.low, self.high, number) if self.log else _ticks(self.low, self.high, number)


def axis(values: Iterable[float], *, log: bool = False, zero: bool = False, margin: float = 0.05) -> Axis:
    """An axis that holds every finite value (of a logarithmic one: every positive value), with room beside the ends.

    ``zero``: the axis begins at 0, or ends there when all values are below it.
    """
    finite = [float(value) for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not finite:
        return Axis(0.1, 1.0, log) if log else Axis(0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        room = max(high / low, 1.05) ** margin
        return Axis(low / room, high * room, True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        room = abs(high) / 2 or 1.0
        return Axis(low if zero and low == 0 else low - room, high + room)
    room = margin * (high - low)
    return Axis(low if zero and low == 0 else low - room, high if zero and high == 0 else high + room)


def tick_text(value: float) -> str:
    """As few characters as tell it: ``0.05``, ``2,000``, ``30k``, ``5M``, ``2e12``."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.2g}".replace("e+", "e").replace("e-0", "e-")
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if size >= 10 * unit or (size >= unit and letter == "M"):
            return f"{value / unit:.4g}{letter}"
    return f"{round(value, 10):,g}" if size >= 1000 else f"{round(value, 10):g}"


def _ticks(low: float, high: float, number: int) -> list[float]:
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(lead * power for lead in (1, 2, 2.5, 5, 10) if lead * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * position for position in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, number: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 2, 5), (1, 3), (1,)):
        ticks = [lead * 10.0**power for power in powers for lead in leads]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) <= number + 1:
            return inside if len(inside) > 1 else _ticks(low, high, number)
    return inside[:: math.ceil(len(inside) / (number + 1))]
