"""Differences between two arms of an online test, with 95 % intervals by user.

``compare`` pairs: both arms served the same people in the same luck, so each user's difference counts, and most of what
makes people unlike each other drops out. ``compare_apart`` treats the arms as two groups, as an app has to; it is here
to show what pairing is worth. Relative differences use the linearised ratio of means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.lab.trial import METRICS, Outcomes

WIDTH = 1.96  # standard errors on either side


@dataclass(frozen=True)
class Difference:
    """B against A for one metric."""

    metric: str
    a: float  # mean of A
    b: float
    value: float  # b - a
    half_width: float  # 95 %
    relative: float  # b / a - 1
    relative_half_width: float
    num_users: int

    @property
    def clear(self) -> bool:
        """True when the interval leaves zero out."""
        return abs(self.value) > self.half_width


def compare(a: Outcomes, b: Outcomes) -> dict[str, Difference]:
    """Paired differences, B less A; users for whom a metric is undefined in one arm are left out of it."""
    if not np.array_equal(a.user_ids, b.user_ids):
        raise InputError("the two arms served different users", fix="run both policies on the same audience")
    found = {}
    for metric in METRICS:
        first, second = a.metrics[metric], b.metrics[metric]
        kept = np.isfinite(first) & np.isfinite(second)
        first, second = first[kept], second[kept]
        ratio = _ratio(first, second)
        found[metric] = Difference(
            metric, _mean(first), _mean(second), _mean(second) - _mean(first), WIDTH * _error(second - first),
            ratio - 1, WIDTH * _error(second - ratio * first) / abs(_mean(first)) if _mean(first) else float("nan"),
            int(kept.sum()),
        )  # fmt: skip
    return found


def compare_apart(a: Outcomes, b: Outcomes) -> dict[str, Difference]:
    """The same differences with the arms taken as two independent groups."""
    found = {}
    for metric in METRICS:
        first, second = (side.metrics[metric][np.isfinite(side.metrics[metric])] for side in (a, b))
        error = float(np.hypot(_error(first), _error(second)))
        ratio = _ratio(first, second)
        apart = float(np.hypot(ratio * _error(first), _error(second)))
        found[metric] = Difference(
            metric, _mean(first), _mean(second), _mean(second) - _mean(first), WIDTH * error,
            ratio - 1, WIDTH * apart / abs(_mean(first)) if _mean(first) else float("nan"),
            min(len(first), len(second)),
        )  # fmt: skip
    return found


def to_text(differences: dict[str, Difference]) -> str:
    """A table for the terminal."""
    lines = [f"{'':18s} {'A':>10s} {'B':>10s} {'B - A':>22s} {'relative':>20s}"]
    for metric, found in differences.items():
        absolute = f"{found.value:+.4g} +- {found.half_width:.3g}"
        relative = f"{100 * found.relative:+.1f} +- {100 * found.relative_half_width:.1f} %"
        mark = " *" if found.clear else ""
        lines.append(f"{metric:18s} {found.a:10.4g} {found.b:10.4g} {absolute:>22s} {relative:>20s}{mark}")
    return "\n".join(lines)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _ratio(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return _mean(second) / _mean(first) if len(first) and _mean(first) else float("nan")
