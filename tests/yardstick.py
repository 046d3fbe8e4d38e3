"""A limit on CPU time that means the same on a fast and on a slow processor."""

from __future__ import annotations

import time

import numpy as np


def yardstick() -> float:
    """CPU seconds of a fixed piece of work, here and now: a million steps of Python and a sort of a million numbers.

    About 0.1 s on a server core of 2023. The better of two, so that a first touch of memory does not count.
    """
    numbers = np.random.default_rng(0).random(10**6)
    best = float("inf")
    for _ in range(2):
        begun = time.process_time()
        total = 0
        for number in range(10**6):
            total += number & 7
        np.sort(numbers)
        best = min(best, time.process_time() - begun)
    return best
