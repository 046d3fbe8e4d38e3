"""One user's events as columns, and the ring that keeps the newest of them.

OneRec (technical report, 2.2) reads of each event: item, creator, time, watch time, duration and a set of labels. The
creator follows from the item and is not kept here.

Trap: a late event (older than one that came before it) is taken, not refused: a log that drops what a slow network
delivers is worse than one that is a few seconds out of order. So *arrival* decides what leaves a full ring first, and
time decides what a reader is shown.

Shape legend: n events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidera.core import InputError
from sidera.data.features import FeatureSchema
from sidera.data.representatives import TOKEN, label_bits

Slots = NDArray[np.int64]  # places in a ring
MAX_LABELS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one user, side by side; build with :meth:`of`, which checks them.

    ``item_ids`` are a store's own item numbers where a store holds the events, and a catalogue's ids where clusters do.
    """

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

    def in_time_order(self) -> Events:
        """The same events by time; ties keep their order."""
        if (self.times[1:] >= self.times[:-1]).all():
            return self
        return self.take(np.argsort(self.times, kind="stable"))

    def tokens(self) -> NDArray[Any]:
        """(n,) of dtype TOKEN: every event stands for itself."""
        rows = np.ones(len(self), dtype=TOKEN)
        for name in COLUMNS:
            rows[name] = getattr(self, name)
        return rows


COLUMNS = tuple(field.name for field in fields(Events))
DTYPES = {"item_ids": np.int32, "times": np.int64, "labels": np.int32, "watch_time": np.float32, "duration": np.float32}


class EventRing:
    """The newest ``max_events`` events in order of arrival; an event keeps its place, its *slot*, for as long.

    Events are numbered by arrival: the ring holds those from ``first`` to before ``end``.
    """

    def __init__(self, max_events: int, first: int = 0) -> None:
        """``first``: the number of the next event, above 0 where earlier ones were let go before."""
        self.max_events = max_events
        self.first = self.end = first
        self.capacity = max_events if first else min(8, max_events)
        self.columns = {name: np.zeros(self.capacity, dtype=DTYPES[name]) for name in COLUMNS}

    def __len__(self) -> int:
        return self.end - self.first

    def slots(self, first: int | None = None) -> Slots:
        """Slots in order of arrival, of all or of those from number ``first`` on."""
        return np.arange(self.first if first is None else max(first, self.first), self.end) % self.capacity

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
        self.capacity += more

    def forget(self, number: int) -> None:
        """Let the oldest go; the caller has taken them out of their clusters."""
        self.first += number

    def extend(self, events: Events) -> Slots:
        """Keep events that fit beside those that are kept, and say where."""
        self.reserve(len(self) + len(events))
        slots = np.arange(self.end, self.end + len(events)) % self.capacity
        for name in COLUMNS:
            self.columns[name][slots] = getattr(events, name)
        self.end += len(events)
        return slots

    @property
    def item_ids(self) -> NDArray[np.int32]:
        """(capacity,), by slot."""
        return self.columns["item_ids"]

    def events(self, slots: Slots) -> Events:
        return Events(**{name: self.columns[name][slots] for name in COLUMNS})

    def copy(self) -> Self:
        other = copy(self)
        other.columns = {name: column.copy() for name, column in self.columns.items()}
        return other

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())


class ClusteredRing(EventRing):
    """A ring that also says which cluster, which *leaf* of a tree, holds each event."""

    def __init__(self, max_events: int) -> None:
        super().__init__(max_events)
        self.columns["leaf"] = np.full(self.capacity, -1, dtype=np.int32)

    @property
    def leaf(self) -> NDArray[np.int32]:
        """(capacity,), by slot."""
        return self.columns["leaf"]


def concatenate(parts: Sequence[Events]) -> Events:
    """One after the other, as they come."""
    return Events(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


def packed_events(schema: FeatureSchema, item_ids: ArrayLike, times: ArrayLike, feedback: Mapping[str, Any]) -> Events:
    """Events with all columns that ``schema`` names (n,), packed as a store keeps them; InputError names bad values."""
    seconds = {name: feedback[name] for name in ("watch_time", "duration") if name in schema.columns}
    unknown = np.full(np.size(np.asarray(item_ids)), np.nan)
    return Events.of(
        item_ids,
        times,
        label_bits(schema, feedback),
        seconds.get("watch_time", unknown),
        seconds.get("duration", unknown),
        may_lack_seconds=True,
    )


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
