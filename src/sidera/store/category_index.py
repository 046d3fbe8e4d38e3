"""The newest events of a user in one category: numbers of events for each (user, category), beside the records.

A store knows no categories. Who appends says which category an item has (``categories``: item number -> category). The
index keeps, for each user and category, the numbers of the newest MOST events of that category in order of arrival. A
reader then reads the blocks that hold them and no other: the cost follows the events that are wanted and not the
history. An event keeps the category that its item had when the event came.

    record: checksum, numbers of events (uint32), ascending
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sidera.core import ArtifactError, InputError
from sidera.store.events import DTYPES, Events
from sidera.store.user_events import BLOCK, EVENT, Head, Part, Records, checked, is_whole, seed_of

MOST = 1024  # events of one user and category
NUMBER = np.dtype("<u4")
FRONT = 4  # bytes of the checksum


def new_numbers(part: Part, first: int, categories: Mapping[int, str]) -> dict[bytes, list[int]]:
    """Category -> numbers of the events of ``part``, of which the first is number ``first``."""
    found: dict[bytes, list[int]] = {}
    for number, item in enumerate(np.frombuffer(part.rows, EVENT)["item_ids"].tolist(), first):
        if (category := categories.get(item)) is not None:
            found.setdefault(category.encode(), []).append(number)
    return found


def grown(user: bytes, category: bytes, record: bytes | None, numbers: list[int]) -> bytes:
    """The record of a category with more events behind those that it has."""
    held = np.zeros(0, NUMBER) if record is None else numbers_in(user, category, record)
    content = np.concatenate([held, np.array(numbers, NUMBER)])[-MOST:].astype(NUMBER).tobytes()
    return checked(_seed(user, category), 0, content)


def numbers_in(user: bytes, category: bytes, record: bytes) -> NDArray[np.uint32]:
    """ArtifactError when the record is changed, or another's."""
    if not is_whole(_seed(user, category), 0, record, NUMBER.itemsize) or len(record) % NUMBER.itemsize:
        raise ArtifactError(
            f"the events of user {user.decode(errors='replace')!r} in category {category.decode(errors='replace')!r}"
            " are damaged in the store", fix="restore the store from a copy, or erase the user",
        )  # fmt: skip
    return np.frombuffer(record, NUMBER, offset=FRONT)


def newest(head: Head, records: Records, numbers: NDArray[np.uint32], n: int, as_of: int | None) -> Events:
    """The newest ``n`` of these events before ``as_of``, in time order, ties in order of arrival."""
    if not 1 <= n <= MOST:
        raise InputError(f"n = {n} events of a category", allowed=f"1 to {MOST}")
    numbers = numbers[numbers >= head.first]  # those before were let go
    blocks, rows, count = numbers // BLOCK, list[NDArray](), 0
    for block in np.unique(blocks)[::-1].tolist():
        (part,) = head.parts(records, block, block + 1)
        events = np.frombuffer(part.rows, EVENT)[numbers[blocks == block] % BLOCK]
        rows.insert(0, events if as_of is None else events[events["times"] < as_of])
        count += len(rows[0])
        if count >= n:
            times = np.concatenate([one["times"] for one in rows])
            if np.partition(times, count - n)[count - n] >= part.before:  # nothing in older blocks is newer
                break
    found = np.concatenate([np.zeros(0, EVENT), *rows])
    found = found[np.argsort(found["times"], kind="stable")][-n:]
    return Events(**{name: np.array(found[name], dtype) for name, dtype in DTYPES.items()})


def _seed(user: bytes, category: bytes) -> int:
    return zlib.crc32(category, seed_of(user))
