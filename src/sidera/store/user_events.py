"""How one user's events are written, whatever engine keeps the records: a head and full blocks behind it.

Events are numbered in order of arrival, from 0. Event number e lies in block e // BLOCK. A full block is a record of
its own and never changes. The *head* holds the counters and the events of the last block, which is not full yet. So an
append rewrites one small record, and the newest 256 events are the head and four blocks.

A reader wants time order, and some events come late. Every block says how new the newest event before it is
(``before``), and the head says how late an event ever was (``lateness``). Both bound the times in a block, so a reader
goes back from the newest block and stops as soon as older blocks cannot matter.

Every record begins with a checksum of its content, its user and its place. A record that was changed, or that stands at
another's place, is refused. The head names the blocks that must exist.

    record of a block: checksum, before, BLOCK events          record of a head: checksum, counters, events
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidera.core import ArtifactError
from sidera.store.events import COLUMNS, DTYPES, Events

BLOCK = 80  # events: 2 blocks fill a page of 4,096 bytes
HEAD = 2**24 - 1  # the place of the head, behind every block
NEVER = -1  # the newest time of no events
EVENT = np.dtype([(name, np.dtype(DTYPES[name]).newbyteorder("<")) for name in COLUMNS])
NAME = np.dtype("<u8")  # of an event, by its sender; 0: none
_CHECKSUM = struct.Struct("<I")
_BLOCK = struct.Struct("<q")  # before
_FRONT = _CHECKSUM.size + _BLOCK.size
_HEAD = struct.Struct("<qqqqqI")  # first, end, newest, before, lateness, events
COUNTERS = _CHECKSUM.size + _HEAD.size  # bytes of a head before its events

Records = Callable[[int, int], Sequence[bytes | None]]  # (a, b) -> the records of blocks a..b-1
ROWS, NAMES = BLOCK * EVENT.itemsize, BLOCK * NAME.itemsize  # bytes of a full block
_SIZES = (_FRONT + ROWS, _FRONT + ROWS + NAMES)


def _damaged(user: bytes, place: int, record: bytes | None) -> ArtifactError:
    name = "head" if place == HEAD else f"block {place}"
    state = "missing" if record is None else "damaged"
    return ArtifactError(
        f"the {name} of user {user.decode(errors='replace')!r} is {state} in the store",
        fix="restore the store from a copy, or erase the user",
    )


def seed_of(user: bytes) -> int:
    """What the checksums of a user's records begin with."""
    return zlib.crc32(user)


def checked(seed: int, place: int, content: bytes) -> bytes:
    """A record: the content behind its checksum."""
    return _CHECKSUM.pack(zlib.crc32(content, (seed + place) & 0xFFFFFFFF)) + content


def is_whole(seed: int, place: int, record: bytes | None, least: int) -> bool:
    """True for a record of at least ``least`` bytes behind its checksum, which holds for its user and place."""
    return (
        isinstance(record, bytes)  # a damaged page may hold another type, or nothing
        and len(record) >= _CHECKSUM.size + least
        and zlib.crc32(record[_CHECKSUM.size :], (seed + place) & 0xFFFFFFFF) == _CHECKSUM.unpack_from(record)[0]
    )


class Part(NamedTuple):
    """Events that stand side by side, as they are written."""

    before: int  # time of the newest event that arrived earlier
    rows: bytes  # of dtype EVENT
    names: bytes = b""  # of dtype NAME, for every row or for none

    @property
    def times(self) -> NDArray[np.int64]:
        """(n,), a view."""
        return np.frombuffer(self.rows, EVENT)["times"]

    @property
    def number(self) -> int:
        return len(self.rows) // EVENT.itemsize


def joined(parts: Sequence[Part]) -> Part:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    rows = b"".join([part.rows for part in parts])
    names = b""
    if any(part.names for part in parts):
        names = b"".join([part.names or bytes(part.number * NAME.itemsize) for part in parts])
    return Part(parts[0].before if parts else NEVER, rows, names)


class Found(NamedTuple):
    """Events of one user and the order in which a reader wants them."""

    part: Part
    order: slice | NDArray[np.int64]

    @property
    def events(self) -> Events:
        rows, order = np.frombuffer(self.part.rows, EVENT), self.order
        return Events(**{name: np.array(rows[name][order], dtype) for name, dtype in DTYPES.items()})

    @property
    def names(self) -> NDArray[np.uint64]:
        """(n,) how senders name these events, 0 where they do not."""
        names = np.frombuffer(self.part.names, NAME) if self.part.names else np.zeros(self.part.number, NAME)
        return names[self.order]


@dataclass(frozen=True)
class Change:
    """What an append does to the records of one user."""

    head: bytes
    blocks: list[tuple[int, bytes]] = field(default_factory=list)
    dropped: tuple[int, int] = (0, 0)  # blocks a..b-1


@dataclass(frozen=True)
class Head:
    """The counters of one user, and the events that fill no block yet."""

    user: bytes
    first: int = 0  # number of the first event kept
    end: int = 0  # number of the next event
    newest: int = NEVER  # time of the newest event ever
    before: int = NEVER  # the same of the events in full blocks
    lateness: int = 0  # seconds that an event was at most older than the newest before it
    last: Part = field(default_factory=lambda: Part(NEVER, b""))  # the block that is not full

    @classmethod
    def read(cls, user: bytes, record: bytes | None) -> Head:
        """ArtifactError when the record is missing, changed, or another's."""
        if record is None or not is_whole(seed_of(user), HEAD, record, _HEAD.size):
            raise _damaged(user, HEAD, record)
        first, end, newest, before, lateness, number = _HEAD.unpack_from(record, _CHECKSUM.size)
        start = _CHECKSUM.size + _HEAD.size
        stop = start + number * EVENT.itemsize
        names = len(record) - stop
        if names not in (0, number * NAME.itemsize) or not 0 <= first <= end or number != end % BLOCK:
            raise _damaged(user, HEAD, record)
        return cls(user, first, end, newest, before, lateness, Part(before, record[start:stop], record[stop:]))

    def record(self) -> bytes:
        last = self.last
        counters = _HEAD.pack(self.first, self.end, self.newest, self.before, self.lateness, last.number)
        return checked(seed_of(self.user), HEAD, b"".join([counters, last.rows, last.names]))

    @property
    def num_blocks(self) -> int:
        """Full ones, those that were let go too."""
        return self.end // BLOCK

    def appended(self, part: Part, max_events: int) -> Change:
        """The records after more events arrived. Those that came first leave beyond ``max_events``."""
        newest, lateness = self._ages(part)
        end = self.end + part.number
        first = max(self.first, end - max_events)
        waiting, blocks, before = joined([self.last, part]), [], self.before
        place = self.num_blocks
        while len(waiting.rows) >= ROWS:
            full = Part(before, waiting.rows[:ROWS], waiting.names[:NAMES])
            if place >= first // BLOCK:
                content = b"".join([_BLOCK.pack(before), full.rows, full.names])
                blocks.append((place, checked(seed_of(self.user), place, content)))
            before = max(before, int(full.times.max()))
            place, waiting = place + 1, Part(before, waiting.rows[ROWS:], waiting.names[NAMES:])
        head = Head(self.user, first, end, newest, before, lateness, waiting)
        return Change(head.record(), blocks, (self.first // BLOCK, min(first // BLOCK, self.num_blocks)))

    def _ages(self, part: Part) -> tuple[int, int]:
        """``newest`` and ``lateness`` with these events."""
        if part.number == 1:
            time = int(part.times[0])
            return max(self.newest, time), max(self.lateness, self.newest - time)
        peaks = np.maximum.accumulate(np.concatenate([[self.newest], part.times]))
        return int(peaks[-1]), max(self.lateness, int((peaks[:-1] - part.times).max(initial=0)))

    def parts(self, records: Records, a: int, b: int) -> list[Part]:
        """Blocks a..b-1; the one behind the last full block is the head's own."""
        full, seed = min(b, self.num_blocks), seed_of(self.user)
        found = []
        for place, record in enumerate(records(a, full) if a < full else (), a):
            if record is None or not is_whole(seed, place, record, _BLOCK.size + ROWS) or len(record) not in _SIZES:
                raise _damaged(self.user, place, record)
            (before,) = _BLOCK.unpack_from(record, _CHECKSUM.size)
            found.append(Part(before, record[_FRONT : _FRONT + ROWS], record[_FRONT + ROWS :]))
        return [*found, self.last] if b > self.num_blocks else found

    def arrivals(self, records: Records, first: int = 0) -> tuple[int, Found]:
        """Events in order of arrival from number ``first`` on, and the number of the first of them."""
        start = min(max(first, self.first), self.end)
        begin = start // BLOCK
        return start, Found(joined(self.parts(records, begin, self.num_blocks + 1)), slice(start - begin * BLOCK, None))

    def between(self, records: Records, since: int, as_of: int | None, n: int | None = None) -> Found:
        """Events in time order, ties in order of arrival: the newest ``n`` of those in [``since``, ``as_of``)."""
        oldest, last = self.first // BLOCK, self._last(records, as_of)
        parts: list[Part] = []
        step = 1 + (BLOCK + (n or 0)) // BLOCK
        while True:
            begin = oldest if n is None and since <= 0 else max(oldest, last - step)
            parts = self.parts(records, begin, last) + parts
            last, step, part = begin, 2 * step, joined(parts)
            skipped = max(0, self.first - begin * BLOCK)  # were let go
            times = part.times[skipped:]
            order = None if not self.lateness else np.argsort(times, kind="stable")  # else they came in time order
            times = times if order is None else times[order]
            end = len(times) if as_of is None or self.newest < as_of else int(np.searchsorted(times, as_of))
            if last <= oldest or part.before < since:
                break
            if n is not None and n <= end and (not n or times[end - n] >= part.before):  # nothing older is newer
                break
        start = int(np.searchsorted(times[:end], since)) if since > 0 else 0
        start = start if n is None else max(start, end - n)
        return Found(part, slice(skipped + start, skipped + end) if order is None else skipped + order[start:end])

    def _last(self, records: Records, as_of: int | None) -> int:
        """The block behind the last one that may hold an event before ``as_of``."""
        if as_of is None or self.before - self.lateness < as_of:
            return self.num_blocks + 1
        oldest = self.first // BLOCK

        def before(place: int) -> int:
            return self.parts(records, place, place + 1)[0].before

        return oldest + bisect_left(range(oldest, self.num_blocks), as_of + self.lateness, key=before)

    def without_old(self, records: Records, since: int) -> Head:
        """Without the events up to which all are older than ``since``."""
        first = self.first
        for place in range(first // BLOCK, self.num_blocks + 1):
            (part,) = self.parts(records, place, place + 1)
            times = part.times
            number = int(np.count_nonzero(np.maximum.accumulate(np.concatenate([[part.before], times]))[1:] < since))
            first = max(first, place * BLOCK + number)
            if number < len(times):
                break
        return replace(self, first=first)


def newest_in(counters: bytes) -> int:
    """The time of the newest event ever, from the first COUNTERS bytes of a head."""
    return int(_HEAD.unpack_from(counters, _CHECKSUM.size)[2])


def part_of(events: Events, names: NDArray[np.uint64] | None = None) -> Part:
    rows = np.zeros(len(events), EVENT)
    for name in COLUMNS:
        rows[name] = getattr(events, name)
    return Part(NEVER, rows.tobytes(), b"" if names is None or not names.any() else names.astype(NAME).tobytes())


def new_of(held: Found | None, part: Part) -> Part:
    """The events that are not held, each once. An event is known by its second and its name, or by its second and
    item where nobody named it."""
    every = Found(part, slice(None))
    seen = set() if held is None else set(_identities(held))
    places = []
    for place, identity in enumerate(_identities(every)):
        if identity not in seen:
            seen.add(identity)
            places.append(place)
    if len(places) == len(every.names):
        return part
    return part_of(every.events.take(np.array(places, np.int64)), every.names[places])


def _identities(found: Found) -> Iterator[tuple[int, int, int]]:
    events, names = found.events, found.names
    items = np.where(names > 0, 0, events.item_ids)
    return zip(events.times.tolist(), items.tolist(), names.tolist(), strict=True)
