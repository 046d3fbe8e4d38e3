"""Differences between two arms of an online test, with 95 % intervals by user.

``compare`` pairs: both arms served the same people in the same luck, so each user's difference counts, and most of what
makes people unlike each other drops out. Relative differences use the linearised ratio of means.
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
    differences = {}
    for metric in METRICS:
        first, second = a.metrics[metric], b.metrics[metric]
        defined = np.isfinite(first) & np.isfinite(second)
        first, second = first[defined], second[defined]
        mean_a, mean_b = _mean(first), _mean(second)
        ratio = mean_b / mean_a if mean_a else float("nan")
        differences[metric] = Difference(
            metric, mean_a, mean_b, mean_b - mean_a, WIDTH * _error(second - first),
            ratio - 1, WIDTH * _error(second - ratio * first) / abs(mean_a) if mean_a else float("nan"),
            int(defined.sum()),
        )  # fmt: skip
    return differences


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
