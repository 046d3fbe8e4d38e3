"""One user's events as columns, the item table they point into, and the ring that keeps the newest so many.

OneRec (technical report, 2.2) reads of each event: item, creator, time, watch time, duration and a set of labels. The
creator follows from the item and stays in the table, which all users share.

Trap: a late event (older than one that came before it) is taken, not refused: a log that drops what a slow network
delivers is worse than one that is a few seconds out of order. So *arrival* decides what leaves a full ring first, and
time decides what a reader is shown.

Shape legend: n events · N items · D width of the item vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidera.core import InputError

Slots = NDArray[np.int64]  # places in a ring
MAX_LABELS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class ItemTable:
    """What the store must know of the items: their vectors and creators, by dense item id."""

    vectors: NDArray[np.float32]  # (N, D)
    creators: NDArray[np.int64]  # (N,), -1 where unknown

    @classmethod
    def of(cls, vectors: ArrayLike, creators: ArrayLike | None = None) -> ItemTable:
        """Check and convert; InputError for vectors that are not a finite table, or creators that do not fit."""
        table = np.ascontiguousarray(vectors, dtype=np.float32)
        if table.ndim != 2 or 0 in table.shape:
            raise InputError(f"item vectors have shape {table.shape}", allowed="(items, dims), both above 0")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(bad):
            raise InputError(
                f"the vector of item {bad[0]} holds NaN or inf ({len(bad)} such items)",
                allowed="finite numbers",
                fix="mend or recompute these vectors",
            )
        makers = np.full(len(table), -1, dtype=np.int64) if creators is None else np.asarray(creators)
        if makers.shape != (len(table),) or makers.dtype.kind not in "iu":
            raise InputError(
                f"creators are {makers.dtype} of shape {makers.shape} for {len(table)} items", allowed="one id per item"
            )
        return cls(table, makers.astype(np.int64))

    @property
    def num_items(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    def digest(self, item_ids: NDArray[np.integer]) -> str:
        """16 hex digits over the vectors of some items: clusters are only good for the vectors they were made with."""
        return hashlib.sha256(self.vectors[np.unique(item_ids)].tobytes()).hexdigest()[:16]

    def check_extends(self, older: ItemTable) -> None:
        """InputError unless this table is the older one with items added below."""
        if self.width != older.width:
            raise InputError(
                f"item vectors have width {self.width}, the histories were clustered with {older.width}",
                allowed=str(older.width),
                fix="build the histories again on the new vectors",
            )
        if self.num_items < older.num_items or not np.array_equal(self.vectors[: older.num_items], older.vectors):
            raise InputError(
                f"the table of {self.num_items} items does not begin with the {older.num_items} vectors of the old one",
                allowed="new items below the old ones",
                fix="build the histories again on the new vectors",
            )


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one user, side by side; build with :meth:`of`, which checks them."""

    item_ids: NDArray[np.int32]  # (n,)
    times: NDArray[np.int64]  # (n,) unix seconds
    labels: NDArray[np.int32]  # (n,) bit i: action i was taken
    watch_time: NDArray[np.float32]  # (n,) seconds, NaN: not recorded
    duration: NDArray[np.float32]  # (n,) seconds, of the item, NaN: not recorded

    @classmethod
    def of(
        cls,
        item_ids: ArrayLike,
        times: ArrayLike,
        labels: ArrayLike | None = None,
        watch_time: ArrayLike | None = None,
        duration: ArrayLike | None = None,
        *,
        may_lack_seconds: bool = False,
    ) -> Events:
        """Columns in time order (ties keep their order); what is not given is 0. InputError names a bad value.

        ``may_lack_seconds``: NaN in watch time or duration says that nobody recorded it; means are of the known ones.
        """
        ids = _whole("item ids", item_ids, None, 2**31 - 1)
        when = _whole("times", times, len(ids), 2**62)
        zeros = np.zeros(len(ids))
        acted = zeros if labels is None else _whole("labels", labels, len(ids), MAX_LABELS)
        seconds = [
            zeros if values is None else _seconds(name, values, len(ids), may_lack_seconds)
            for name, values in (("watch_time", watch_time), ("duration", duration))
        ]
        order = np.argsort(when, kind="stable")
        return cls(
            item_ids=ids[order].astype(np.int32),
            times=when[order].astype(np.int64),
            labels=acted[order].astype(np.int32),
            watch_time=seconds[0][order].astype(np.float32),
            duration=seconds[1][order].astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Events:
        return Events(**{name: getattr(self, name)[rows] for name in COLUMNS})

    def check_known(self, items: ItemTable) -> None:
        """InputError when an event is of an item that the table does not have."""
        unknown = np.flatnonzero(self.item_ids >= items.num_items)
        if len(unknown):
            raise InputError(
                f"event {unknown[0]} is of item {self.item_ids[unknown[0]]} ({len(unknown)} of {len(self)} events)",
                allowed=f"items 0..{items.num_items - 1}",
                fix="add the item's vector to the table, or leave the event out",
            )


COLUMNS = tuple(field.name for field in fields(Events))
DTYPES = {"item_ids": np.int32, "times": np.int64, "labels": np.int32, "watch_time": np.float32, "duration": np.float32}


class EventRing:
    """The newest ``max_events`` events in order of arrival; an event keeps its place, its *slot*, for as long."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self.first = 0  # number of the oldest event kept, counted from the first that ever came
        self.end = 0  # number of the next one
        self.capacity = min(64, max_events)
        self.columns = {name: np.zeros(self.capacity, dtype=DTYPES[name]) for name in COLUMNS}
        self.leaf = np.full(self.capacity, -1, dtype=np.int32)  # the cluster that holds the event

    def __len__(self) -> int:
        return self.end - self.first

    def slots(self, newest: int | None = None) -> Slots:
        """Slots in order of arrival, of all or of the last so many."""
        first = self.first if newest is None else max(self.first, self.end - newest)
        return np.arange(first, self.end) % self.capacity

    def oldest(self, number: int) -> Slots:
        return np.arange(self.first, self.first + number) % self.capacity

    def age(self, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """Place in the order of arrival: 0 for the oldest event kept."""
        return (slots.astype(np.int64) - self.first) % self.capacity

    def reserve(self, number: int) -> None:
        """Room for so many events. Before any are let go: until then slots are numbers and stay what they are."""
        if number <= self.capacity:
            return
        if self.first:
            raise AssertionError("a ring that has let events go cannot grow")
        more = min(self.max_events, max(number, 2 * self.capacity)) - self.capacity
        for name, column in self.columns.items():
            self.columns[name] = np.concatenate([column, np.zeros(more, dtype=column.dtype)])
        self.leaf = np.concatenate([self.leaf, np.full(more, -1, dtype=np.int32)])
        self.capacity += more

    def forget(self, number: int) -> None:
        """Let the oldest go; the caller has taken them out of their clusters."""
        self.first += number

    def extend(self, events: Events) -> Slots:
        """Keep events that fit beside those that are here, and say where."""
        self.reserve(len(self) + len(events))
        slots = np.arange(self.end, self.end + len(events)) % self.capacity
        for name, column in self.columns.items():
            column[slots] = getattr(events, name)
        self.end += len(events)
        return slots

    @property
    def item_ids(self) -> NDArray[np.int32]:
        """(capacity,), by slot."""
        return self.columns["item_ids"]

    def events(self, slots: Slots) -> Events:
        return Events(**{name: column[slots] for name, column in self.columns.items()})

    def copy(self) -> EventRing:
        other = object.__new__(EventRing)
        other.__dict__.update(self.__dict__)
        other.columns = {name: column.copy() for name, column in self.columns.items()}
        other.leaf = self.leaf.copy()
        return other

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values()) + self.leaf.nbytes


def concatenate(parts: Sequence[Events]) -> Events:
    """One after the other, as they come."""
    return Events(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


def _whole(name: str, values: ArrayLike, length: int | None, largest: int) -> NDArray:
    array = np.atleast_1d(np.asarray(values))
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list is a list of floats to numpy
    _check_shape(name, array, length)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} are {array.dtype}", allowed="whole numbers")
    bad = np.flatnonzero((array < 0) | (array > largest))
    if len(bad):
        raise InputError(f"{name}[{bad[0]}] = {array[bad[0]]} is out of range", allowed=f"0..{largest}")
    return array


def _seconds(name: str, values: ArrayLike, length: int, may_lack: bool) -> NDArray:
    array = np.atleast_1d(np.asarray(values, dtype=np.float32))
    _check_shape(name, array, length)
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0) | (np.isnan(array) & may_lack)))
    if len(bad):
        raise InputError(f"{name}[{bad[0]}] = {array[bad[0]]} is no length of time", allowed="seconds, 0 or more")
    return array


def _check_shape(name: str, array: NDArray, length: int | None) -> None:
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "(events,)" if length is None else f"({length},), one per item id"
        raise InputError(f"{name} have shape {array.shape}", allowed=expected)
