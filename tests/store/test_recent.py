"""The newest events of all users: a window holds each event once, and knows those that came since."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import Events
from sidera.store.recent import RecentEvents

ITEMS = [f"item-{number}" for number in range(10)]


def counted(recent: RecentEvents, since: int, until: int) -> tuple[list[int], int]:
    window = recent.within(since, until)
    return np.bincount(window.numbers, minlength=10).tolist(), window.since


def opened(path: Path) -> EmbeddedStore:
    store = EmbeddedStore(path, StoreConfig(durability="kernel"))
    store.numbers_of(ITEMS)
    return store


def test_windows_count_every_event_once(tmp_path: Path) -> None:
    rng, times, numbers = np.random.default_rng(0), [], []
    with opened(tmp_path / "store") as store:
        recent, early = RecentEvents(store), RecentEvents(store)
        assert counted(recent, 0, 2**40) == ([0] * 10, 0)
        for _ in range(60):
            when, which = rng.integers(1000, size=7), rng.integers(10, size=7)
            store.append(f"user-{rng.integers(5)}", Events.of(which, when))
            times += when.tolist()
            numbers += which.tolist()
            low, high = sorted(rng.integers(1000, size=2).tolist())
            inside = (np.array(times) >= low) & (np.array(times) < high)
            assert counted(recent, low, high)[0] == np.bincount(np.array(numbers)[inside], minlength=10).tolist()
        assert counted(RecentEvents(store), 0, 1000) == counted(recent, 0, 1000)  # a process that comes later
        store.erase("user-1")
        recent.forget()
        assert counted(recent, 0, 1000) == counted(early, 0, 1000)
        assert sum(counted(recent, 0, 1000)[0]) < len(times)


def test_what_does_not_fit_is_the_oldest_and_is_said(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        for user in range(4):
            store.append(f"user-{user}", Events.of([user] * 50, list(range(user, 200, 4))))
        recent = RecentEvents(store, most=100)
        numbers, _, since = recent.within(0, 200)
        assert (len(numbers), since) == (100, 100)
        store.append("user-0", Events.of([9] * 60, list(range(200, 260))))
        numbers, _, since = recent.within(0, 300)
        assert (len(numbers), since) == (100, 160)
        assert recent.within(250, 300).since == 250


def test_events_that_come_while_users_are_read_are_counted_once(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        recent, over = RecentEvents(store), threading.Event()

        def write() -> None:
            for number in range(300):
                store.append(f"user-{number % 20}", Events.of([number % 10], [number]))
            over.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not over.is_set():
            window = recent.within(0, 300)
            assert len(window.numbers) <= 300
            recent.forget()
        writer.join()
        assert counted(recent, 0, 300)[0] == [30] * 10
