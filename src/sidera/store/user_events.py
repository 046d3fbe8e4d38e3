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
from typing import Any

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
_HEAD = struct.Struct("<qqqqqI")  # first, end, newest, before, lateness, events

Records = Callable[[int, int], Sequence[bytes | None]]  # (a, b) -> the records of blocks a..b-1
Bytes = bytes | memoryview
Rows = NDArray[Any]  # (n,) of dtype EVENT


def checked(user: bytes, place: int, content: bytes) -> bytes:
    """A record: the content behind its checksum."""
    return _CHECKSUM.pack(zlib.crc32(content, _seed(user, place))) + content


def content_of(user: bytes, place: int, record: bytes | None) -> memoryview:
    """The content of a record; ArtifactError when it is missing, changed, or another's."""
    if record is not None and len(record) > _CHECKSUM.size:
        content = memoryview(record)[_CHECKSUM.size :]
        if zlib.crc32(content, _seed(user, place)) == _CHECKSUM.unpack_from(record)[0]:
            return content
    raise _damaged(user, place, "missing" if record is None else "damaged")


def _damaged(user: bytes, place: int, state: str) -> ArtifactError:
    name = "head" if place == HEAD else f"block {place}"
    return ArtifactError(
        f"the {name} of user {user.decode(errors='replace')!r} is {state} in the store",
        fix="restore the store from a copy, or erase the user",
    )


def _seed(user: bytes, place: int) -> int:
    return (zlib.crc32(user) + place) & 0xFFFFFFFF


@dataclass(frozen=True)
class Part:
    """Events that stand side by side, as they are written."""

    before: int  # time of the newest event that arrived earlier
    rows: Bytes  # of dtype EVENT
    names: Bytes = b""  # of dtype NAME, for every row or for none

    @classmethod
    def of(cls, before: int, content: Bytes, number: int) -> Part:
        size = number * EVENT.itemsize
        return cls(before, content[:size], content[size:])

    def fits(self, number: int) -> bool:
        """True when rows and names are of so many events."""
        sizes = (len(self.rows), len(self.names))
        return sizes[0] == number * EVENT.itemsize and sizes[1] in (0, number * NAME.itemsize)

    @property
    def content(self) -> bytes:
        return b"".join([self.rows, self.names])


def joined(parts: Sequence[Part]) -> Part:
    """One after the other."""
    rows = b"".join([part.rows for part in parts])
    names = b""
    if any(part.names for part in parts):
        names = b"".join([part.names or bytes(len(part.rows) // EVENT.itemsize * NAME.itemsize) for part in parts])
    return Part(parts[0].before if parts else NEVER, rows, names)


@dataclass(frozen=True, eq=False)
class Found:
    """Events of one user and the order in which a reader wants them."""

    part: Part
    order: slice | NDArray[np.int64]

    @property
    def events(self) -> Events:
        rows = np.frombuffer(self.part.rows, EVENT)
        return Events(**{name: np.array(rows[name][self.order], DTYPES[name]) for name in COLUMNS})

    @property
    def names(self) -> NDArray[np.uint64]:
        """(n,) how senders name these events, 0 where they do not."""
        rows = len(self.part.rows) // EVENT.itemsize
        names = np.frombuffer(self.part.names, NAME) if self.part.names else np.zeros(rows, NAME)
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
        content = content_of(user, HEAD, record)
        if len(content) < _HEAD.size:
            raise _damaged(user, HEAD, "damaged")
        first, end, newest, before, lateness, number = _HEAD.unpack_from(content)
        last = Part.of(before, content[_HEAD.size :], number)
        head = cls(user, first, end, newest, before, lateness, last)
        if not (head.last.fits(number) and 0 <= head.first <= head.end and number == head.end % BLOCK):
            raise _damaged(user, HEAD, "damaged")
        return head

    def record(self) -> bytes:
        number = len(self.last.rows) // EVENT.itemsize
        counters = _HEAD.pack(self.first, self.end, self.newest, self.before, self.lateness, number)
        return checked(self.user, HEAD, counters + self.last.content)

    @property
    def num_blocks(self) -> int:
        """Full ones, those that were let go too."""
        return self.end // BLOCK

    def appended(self, part: Part, max_events: int) -> Change:
        """The records after more events arrived. Those that came first leave beyond ``max_events``."""
        times = np.frombuffer(part.rows, EVENT)["times"]
        peaks = np.maximum.accumulate(np.concatenate([[self.newest], times]))
        late = int((peaks[:-1] - times).max(initial=0))
        end = self.end + len(times)
        first = max(self.first, end - max_events)
        waiting, blocks, before = joined([self.last, part]), [], self.before
        place, size, name_size = self.num_blocks, BLOCK * EVENT.itemsize, BLOCK * NAME.itemsize
        while len(waiting.rows) >= size:
            full = Part(before, waiting.rows[:size], waiting.names[:name_size])
            if place >= first // BLOCK:
                blocks.append((place, checked(self.user, place, _BLOCK.pack(before) + full.content)))
            before = max(before, int(np.frombuffer(full.rows, EVENT)["times"].max()))
            place, waiting = place + 1, Part(before, waiting.rows[size:], waiting.names[name_size:])
        head = Head(self.user, first, end, int(peaks[-1]), before, max(self.lateness, late), waiting)
        return Change(head.record(), blocks, (self.first // BLOCK, min(first // BLOCK, self.num_blocks)))

    def parts(self, records: Records, a: int, b: int) -> list[Part]:
        """Blocks a..b-1; the one behind the last full block is the head's own."""
        full = min(b, self.num_blocks)
        found = []
        for place, record in zip(range(a, full), records(a, full) if a < full else (), strict=True):
            content = content_of(self.user, place, record)
            if len(content) <= _BLOCK.size:
                raise _damaged(self.user, place, "damaged")
            part = Part.of(_BLOCK.unpack_from(content)[0], content[_BLOCK.size :], BLOCK)
            if not part.fits(BLOCK):
                raise _damaged(self.user, place, "damaged")
            found.append(part)
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
            places = self._in_time(part, max(0, self.first - begin * BLOCK), as_of)
            if last <= oldest or part.before < since:
                break
            if n is not None and len(places) >= n:
                times = np.frombuffer(part.rows, EVENT)["times"]
                if not n or times[places[len(places) - n]] >= part.before:  # nothing older is newer
                    break
        if since > 0:
            times = np.frombuffer(part.rows, EVENT)["times"][places]
            places = places[int(np.searchsorted(times, since)) :]
        return Found(part, places if n is None else places[max(0, len(places) - n) :])

    def _in_time(self, part: Part, skipped: int, as_of: int | None) -> NDArray[np.int64]:
        """Places of the events before ``as_of`` in a part, in time order; the first ``skipped`` were let go."""
        times = np.frombuffer(part.rows, EVENT)["times"]
        places = np.arange(skipped, len(times))
        if self.lateness:  # some came late
            places = places[np.argsort(times[skipped:], kind="stable")]
        if as_of is None or self.newest < as_of:
            return places
        return places[: int(np.searchsorted(times[places], as_of))]

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
            times = np.frombuffer(part.rows, EVENT)["times"]
            number = int(np.count_nonzero(np.maximum.accumulate(np.concatenate([[part.before], times]))[1:] < since))
            first = max(first, place * BLOCK + number)
            if number < len(times):
                break
        return replace(self, first=first)


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
