"""How many threads a piece of work is given: what was fastest when it was tried, here and now.

More threads are not faster by themselves. Steps of milliseconds spend their time on waking and joining threads, and on
a machine that others use each step waits for the thread that was put aside. So the work itself is timed, with one
thread and with more, in turns, and more are taken only where that is clearly faster on the clock.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from sidera.ops.cores import available_cores, fixed_threads

CLEARLY = 1.2  # twice the threads have to be so many times faster
ROUNDS = 5  # timed calls of short work; fewer of long work
LONG = (0.2, 2.0)  # seconds of a call from which it is timed 3 times, once


@dataclass(frozen=True)
class Choice:
    """So many threads, out of so many cores, and what a call took (seconds, by threads) where it was timed."""

    threads: int
    cores: int
    seconds: dict[int, float] = field(default_factory=dict)

    def describe(self, unit: str = "step") -> str:
        """One line for the screen, e.g. "threads: 1 of 2 (1 thread 31 ms a step, 2 threads 45 ms)"."""
        tried = [
            f"{count} thread{'s' * (count > 1)} {_shown(spent)}{f' a {unit}' * (place == 0)}"
            for place, (count, spent) in enumerate(self.seconds.items())
        ]
        return f"threads: {self.threads} of {self.cores}" + (f" ({', '.join(tried)})" if tried else "")


def usable_threads() -> int:
    """Threads that work may be spread over: the cores of this process, or fewer where torch was told so."""
    return max(1, min(available_cores(), torch.get_num_threads()))


def given_threads(otherwise: int) -> int:
    """Threads for work that is not timed: those that were asked for, else ``otherwise``, within what is usable."""
    return fixed_threads() or min(otherwise, usable_threads())


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Inside, operations of torch run on ``count`` threads; 0: as before."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(call: Callable[[int], object], limit: int, rounds: int = ROUNDS) -> Choice:
    """Call ``call(number)`` with 1, 2, 4, ... threads up to ``limit`` while each doubling is clearly faster.

    Every number of threads does the same work: ``number`` counts the rounds, the first of which (0) is not timed. With
    a ``limit`` of one nothing is called.
    """
    best, seconds = 1, dict[int, float]()
    with num_threads(0):
        while best < limit:
            more = min(2 * best, limit)
            seconds |= _timed(call, (best, more), rounds)
            if seconds[more] * CLEARLY > seconds[best]:
                break
            best = more
    return Choice(best, limit, seconds)


def in_turns(calls: dict[str, Callable[[int], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median wall seconds of each, called in turns; the first round warms up and decides how many there are."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    number = 0
    while number <= rounds:
        for name, call in calls.items():
            started = time.perf_counter()
            call(number)
            spent[name].append(time.perf_counter() - started)
        if number == 0:
            longest = max(times[0] for times in spent.values())
            rounds = min(rounds, 1 if longest > LONG[1] else 3 if longest > LONG[0] else rounds)
        number += 1
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def _timed(call: Callable[[int], object], counts: tuple[int, ...], rounds: int) -> dict[int, float]:
    def on(count: int) -> Callable[[int], object]:
        def timed(number: int) -> object:
            torch.set_num_threads(count)
            return call(number)

        return timed

    found = in_turns({str(count): on(count) for count in counts}, rounds)
    return {int(name): spent for name, spent in found.items()}


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
