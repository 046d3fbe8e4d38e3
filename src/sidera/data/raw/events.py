"""A raw log while it is read and thinned: keys as whole numbers, columns as arrays, a few dozen bytes an event.

Thinning follows the habits of the published benchmarks, in this order: period, rating, repeats, k-core. The order of
the file is kept: it breaks the ties of equal times when the log is sorted.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class RawEvents:
    """E events in the order of the file."""

    user_codes: np.ndarray  # (E,) int64 into user_keys
    item_codes: np.ndarray  # (E,) int64 into item_keys
    times: np.ndarray  # (E,) float64, unix seconds or milliseconds as the publisher wrote them
    user_keys: Sequence[str]
    item_keys: Sequence[str]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (E,) numbers

    def __len__(self) -> int:
        return len(self.user_codes)

    def keep(self, kept_mask: np.ndarray) -> RawEvents:
        if kept_mask.all():
            return self
        return RawEvents(
            self.user_codes[kept_mask],
            self.item_codes[kept_mask],
            self.times[kept_mask],
            self.user_keys,
            self.item_keys,
            {name: values[kept_mask] for name, values in self.columns.items()},
        )

    def items(self) -> set[str]:
        """Keys of the items that the events name."""
        return {self.item_keys[code] for code in np.unique(self.item_codes).tolist()}

    def table(self) -> pa.Table:
        """As ``schema.build_dataset`` reads it."""
        keys = {"user": (self.user_codes, self.user_keys), "item": (self.item_codes, self.item_keys)}
        coded = {
            name: pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(values, type=pa.string()))
            for name, (codes, values) in keys.items()
        }
        return pa.table({**coded, "time": self.times, **{name: pa.array(v) for name, v in self.columns.items()}})


class EventLog:
    """Events as they come, line by line or block by block."""

    def __init__(self, *columns: str) -> None:
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._codes: tuple[array[int], array[int]] = (array("q"), array("q"))
        self._numbers: dict[str, array[float]] = {name: array("d") for name in ("time", *columns)}

    def add(self, user: str, item: str, time: float, *values: float) -> None:
        """One event; ``values`` in the order of the columns."""
        self._codes[0].append(self._users.setdefault(user, len(self._users)))
        self._codes[1].append(self._items.setdefault(item, len(self._items)))
        for numbers, value in zip(self._numbers.values(), (time, *values), strict=True):
            numbers.append(value)

    def add_block(self, users: pa.Array, items: pa.Array, kept_mask: np.ndarray, **values: np.ndarray) -> None:
        """Events of a block that a mask (n,) names; ``values`` are ``time`` and the columns, (n,) each."""
        mask = pa.array(kept_mask)
        for codes, known, keys in zip(self._codes, (self._users, self._items), (users, items), strict=True):
            encoded = keys.filter(mask).dictionary_encode()
            fresh = [known.setdefault(key, len(known)) for key in encoded.dictionary.to_pylist()]
            event_codes = (
                np.asarray(fresh, dtype=np.int64)[encoded.indices.to_numpy()] if fresh else np.zeros(0, np.int64)
            )
            codes.frombytes(event_codes.tobytes())
        for name, numbers in self._numbers.items():
            numbers.frombytes(np.ascontiguousarray(values[name][kept_mask], dtype=np.float64).tobytes())

    def finish(self, types: Mapping[str, type] | None = None) -> RawEvents:
        """The events; ``types``: of columns that are no ratings. A column without a single value is left out."""
        arrays = {name: _view(numbers, np.float64) for name, numbers in self._numbers.items()}
        time = arrays.pop("time")
        columns: dict[str, np.ndarray] = {}
        for name, values in arrays.items():
            if not len(values) or np.isnan(values).all():
                continue
            columns[name] = values.astype((types or {}).get(name) or rating_type(values))
        users, items = (_view(codes, np.int64) for codes in self._codes)
        return RawEvents(users, items, time, list(self._users), list(self._items), columns)


def _view(numbers: array[float] | array[int], kind: type) -> np.ndarray:
    """The same memory as a numpy array; numpy refuses an empty one."""
    return np.frombuffer(numbers, dtype=kind) if len(numbers) else np.zeros(0, dtype=kind)


def rating_type(values: np.ndarray) -> type:
    """Stars are int8 where all are whole, else float32."""
    whole = not np.isnan(values).any() and (values == np.floor(values)).all() and np.abs(values).max() <= 127
    return np.int8 if whole else np.float32


def k_core(user_codes: np.ndarray, item_codes: np.ndarray, k: int) -> np.ndarray:
    """(E,) bool: the events left when users and items with fewer than k events are taken away until none is."""
    remaining = np.arange(len(user_codes))
    while len(remaining):
        few = np.zeros(len(remaining), dtype=bool)
        for codes in (user_codes[remaining], item_codes[remaining]):
            few |= np.bincount(codes)[codes] < k
        if not few.any():
            break
        remaining = remaining[~few]
    mask = np.zeros(len(user_codes), dtype=bool)
    mask[remaining] = True
    return mask


def repeats(events: RawEvents, pairs: bool) -> np.ndarray:
    """(E,) bool: events met before: equal in every column, or (``pairs``) of a user and an item met earlier."""
    columns = [] if pairs else [values for _, values in sorted(events.columns.items())]
    order = np.lexsort((*columns, events.times, events.item_codes, events.user_codes))
    again = np.zeros(len(events), dtype=bool)
    if len(events) < 2:
        return again
    same = np.ones(len(events) - 1, dtype=bool)
    for values in (events.user_codes, events.item_codes, *([] if pairs else [events.times, *columns])):
        sorted_values = values[order]
        equal = sorted_values[1:] == sorted_values[:-1]
        if sorted_values.dtype.kind == "f":
            equal |= np.isnan(sorted_values[1:]) & np.isnan(sorted_values[:-1])
        same &= equal
    again[order[1:]] = same  # the sort is stable: what stays is the earliest in the file
    return again
