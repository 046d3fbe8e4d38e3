"""HistoryStore: the role of who keeps every user's events, and the map from its item numbers to a catalogue's ids.

    numbers = store.numbers_of(["cup-3", "tea-1"])
    store.append("user-7", Events.of(numbers, [1_700_000_000, 1_700_000_031], labels=[1, 0]))
    events = store.history("user-7", as_of=1_700_000_100, n=256)
    item_ids = CatalogIds(store, catalog.find_ids).of(events.item_ids)         # -1: not in this catalogue

A store knows items by their keys. It gives every key a number of its own, so an event costs 24 bytes however long its
key is. Every retrained catalogue numbers its items in another way, and the same store serves all of them. An event
of an item that no catalogue holds today can be read when one does.

``store.embedded`` is the store of one machine. ``tests/contracts/test_every_store.py`` holds for every store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sidera.core import ArtifactError
from sidera.store.events import Events

Names = NDArray[np.uint64]
Categories = Mapping[int, str]  # item number -> category
MOST_CHANGES = 100_000  # appends that a store remembers as changes


class Change(NamedTuple):
    """An append: the user's events with the numbers ``first`` to before ``end``, in order of arrival."""

    user: str
    first: int
    end: int


class Changes(NamedTuple):
    """Appends of all users in the order in which they were kept."""

    last: int  # number of the last change; 0: there was none
    appended: list[Change] | None  # None: more came since than the store remembers; read the users again


class HistoryStore(Protocol):
    """Every user's events. Any number of threads may call it."""

    @property
    def num_users(self) -> int:
        """Users of whom there is an event."""

    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        """(n,) the store's own numbers of item keys; a new key gets the next free number, for ever."""

    def item_keys(self, first: int = 0, number: int | None = None) -> list[str]:
        """The keys of ``number`` numbers (None: of all) from ``first`` on, in their order."""

    def append(
        self, user: str, events: Events, *, new_only: bool = False, names: Names | None = None,
        categories: Categories | None = None,
    ) -> int:  # fmt: skip
        """Add events of a user, whose ``item_ids`` are the store's numbers -> how many. Durable when this returns.

        ``new_only`` leaves out an event that is held already, or that comes twice: a sender who got no answer can send
        again. An event is known by its second and its item; one that its sender named (``names`` (n,), 0: it has no
        name) by its second and its name. ``categories`` indexes the events by the category of their item, for
        :meth:`in_category`. InputError for a number that no key has, OSError for a disk or a server that
        takes nothing; in both cases nothing has changed.
        """

    def append_all(
        self, users: Sequence[tuple[str, Events, Names | None]], *, new_only: bool = False,
        categories: Categories | None = None,
    ) -> list[int]:  # fmt: skip
        """:meth:`append` for several users -> how many of each, with one wait for the disk. All are added, or none."""

    def history(self, user: str, as_of: int | None = None, n: int | None = None, since: int = 0) -> Events | None:
        """The newest ``n`` events kept of those from ``since`` to before ``as_of`` (unix seconds), in time order, ties
        in order of arrival. None for either: all. None for a user of whom there was never an event."""

    def in_category(self, user: str, category: str, n: int, as_of: int | None = None) -> Events | None:
        """The newest ``n`` (at most 1,024) events of a user that were appended with this category, as :meth:`history`
        has them. It reads no block that holds none of the newest 1,024 of them."""

    def index(self, user: str, categories: Categories) -> None:
        """Index all events of a user again: those of a store that had no index, or another one."""

    def arrivals(self, user: str, first: int = 0) -> tuple[int, Events]:
        """The events kept that arrived as number ``first`` or later (0: the user's first ever), in order of arrival,
        and the number of the first of them: above ``first`` where events were let go, below where so many never came.
        """

    def users(self, limit: int | None = None) -> list[str]:
        """Keys of all users, sorted; or of ``limit`` of them, whichever the store comes upon first."""

    def newest_of_users(self) -> list[tuple[int, str]]:
        """The time of every user's newest event, the newest first, and the user's key."""

    def changes(self, after: int | None = None) -> Changes:
        """What was appended behind change number ``after``, of whichever process; None: only the number of the last."""

    def settled(self, name: str, value: str | None = None) -> str | None:
        """The value that was first given under this name, for ever; None where none was given."""

    def compact(self) -> list[str]:
        """Let go of events that are too old, and give back room -> users of whom nothing is left, in no order."""

    def erase(self, user: str) -> bool:
        """Take a user out, everywhere; False where there is none."""

    def close(self) -> None:
        """Give everything back; what was appended stays."""


FindIds = Callable[[Sequence[str]], NDArray[np.int64]]  # keys -> ids, -1 for those that a catalogue does not hold


class CatalogIds:
    """The ids that one catalogue gives the items of a store. A read is one gather; a new catalogue needs a new map."""

    def __init__(self, store: HistoryStore, find_ids: FindIds) -> None:
        self._store, self._find_ids = store, find_ids
        self._ids = np.empty(0, dtype=np.int32)
        self._lock = threading.Lock()

    def of(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n,) ids of the catalogue's items, -1 where it does not hold the item."""
        largest = int(numbers.view(np.uint32).max(initial=0))
        if len(numbers) and largest >= len(self._ids):
            with self._lock:
                keys = self._store.item_keys(len(self._ids))
                self._ids = np.concatenate([self._ids, self._find_ids(keys).astype(np.int32)])
            if largest >= len(self._ids):
                raise ArtifactError(f"an event is of item number {largest}, which has no key", fix="restore the store")
        return self._ids[numbers]
