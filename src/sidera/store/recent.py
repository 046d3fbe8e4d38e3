"""The newest events of all users side by side, by time: what is popular in a window.

    recent = RecentEvents(store)
    window = recent.within(now - 86_400, now)                   # items of the last day's events

The first question reads the users whose events are newest; every later one reads what was appended since, by whichever
process. At most ``most`` events are held, 16 bytes each. A window that begins before the oldest of them begins there,
and the answer says so.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidera.store.history_store import HistoryStore

MOST = 1_000_000  # events: 16 MB
COLUMNS = ("times", "item_ids", "labels")


class Window(NamedTuple):
    """Events of a span of time, in no order."""

    numbers: NDArray[np.int32]  # (n,) of the store, of their items
    labels: NDArray[np.int32]  # (n,) bits
    since: int  # second from which on all events are among them


class RecentEvents:
    """Follows a store. Any number of threads."""

    def __init__(self, store: HistoryStore, most: int = MOST) -> None:
        self.store, self.most = store, most
        self._lock = threading.Lock()
        self._place: int | None = None  # number of the last change that was taken in
        self._forget()

    def within(self, since: int, until: int) -> Window:
        """Events from ``since`` to before ``until`` (unix seconds)."""
        with self._lock:
            self._follow()
            (times, numbers, labels), floor = self._held, self._floor
        mask = (times >= since) & (times < until)
        return Window(numbers[mask], labels[mask], max(since, floor))

    def forget(self) -> None:
        """Read the users again at the next question: one was erased, or events became too old."""
        with self._lock:
            self._place = None

    def _forget(self) -> None:
        self._held: tuple[NDArray, ...] = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
        self._new: list[tuple[NDArray, ...]] = []
        self._num_new = self._floor = 0  # events before the second ``_floor`` may be missing
        self._read: dict[str, int] = {}  # user -> number of the first event that the reading of all did not see

    def _follow(self) -> None:
        changes = self.store.changes(self._place)
        if self._place is None or changes.appended is None:
            self._forget()
            for newest, user in self.store.newest_of_users():
                if newest < self._floor:
                    break
                self._read[user] = self._take_in(user, 0, None)
        else:
            for user, first, end in changes.appended:
                self._take_in(user, max(first, self._read.get(user, 0)), end)
            self._read = {}
        self._place = changes.last
        self._join()

    def _take_in(self, user: str, first: int, end: int | None) -> int:
        """A user's events from number ``first`` to before ``end`` -> the number behind the last that is kept."""
        begin, events = self.store.arrivals(user, first)
        events = events.take(slice(max(0, first - begin), None if end is None else max(0, end - begin)))
        self._new.append(tuple(getattr(events, name) for name in COLUMNS))
        self._num_new += len(events)
        if self._num_new > self.most // 4:
            self._join()
        return begin + len(events)

    def _join(self) -> None:
        """At most ``most`` events; a second of which some do not fit goes whole."""
        if not self._num_new:
            return
        columns = [np.concatenate(parts) for parts in zip(self._held, *self._new, strict=True)]
        times = columns[0]
        if len(times) > self.most:
            self._floor = max(self._floor, int(np.partition(times, -self.most - 1)[-self.most - 1]) + 1)
        mask = times >= self._floor
        self._held, self._new, self._num_new = tuple(column[mask] for column in columns), [], 0
