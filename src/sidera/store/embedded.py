"""EmbeddedStore: the history store of one machine, in a SQLite database, durable when an append returns.

    with EmbeddedStore("store") as store:
        store.append("user-7", Events.of(store.numbers_of(["cup-3"]), [1_700_000_000], labels=[1]))
        events = store.history("user-7", as_of=1_700_000_100)

``user_events.py`` says how one user's events are written, ``database.py`` what a commit is and what is noticed. Here
the records get their places: a user has a number, and the records of user number u have the ids from u · 2**24 on, the
head's at their end. So the newest events of a user are one range of the table, read by one statement.

Any number of threads and of processes may use one folder.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sidera.config import check_value
from sidera.core import InputError
from sidera.store import category_index
from sidera.store.category_index import numbers_in
from sidera.store.database import Database, Ledger
from sidera.store.events import Events
from sidera.store.folder import DURABILITIES, MANIFEST, Durability, Plan
from sidera.store.history_store import MOST_CHANGES, Categories, Change, Changes, Names
from sidera.store.item_keys import ItemKeys, key_bytes
from sidera.store.user_events import BLOCK, COUNTERS, HEAD, Head, Part, Records, new_of, newest_in, part_of

PLACES = HEAD + 1  # ids of one user
TIDY_EVERY = 1024  # changes
PLAN = Plan(
    "behaviour-store",
    4,
    """
    CREATE TABLE IF NOT EXISTS users (number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY, key BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS changes (
        number INTEGER PRIMARY KEY, user INTEGER NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS categories (
        user INTEGER NOT NULL, category BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (user, category)
    ) WITHOUT ROWID;
    """,
    older="give an empty folder, and fill it from the data (`sidera serve RUN --store NEW --fill DATA`)",
)
_NEWEST = f"""
SELECT records.id % {PLACES}, record FROM users LEFT JOIN records
ON records.id BETWEEN users.number * {PLACES} AND users.number * {PLACES} + {HEAD}
WHERE users.key = ? ORDER BY records.id DESC LIMIT ?
"""
_HEAD = f"""
SELECT number, record FROM users LEFT JOIN records ON records.id = users.number * {PLACES} + {HEAD} WHERE key = ?
"""
_NEWEST_OF_USERS = f"""
SELECT key, substr(record, 1, {COUNTERS}) FROM users JOIN records ON records.id = users.number * {PLACES} + {HEAD}
"""
_CHANGES = """
SELECT changes.number, users.key, first, end FROM changes LEFT JOIN users ON users.number = changes.user
WHERE changes.number >= ? ORDER BY changes.number
"""
_CATEGORY = "SELECT record FROM categories WHERE user = ? AND category = ?"
_ITEMS = "SELECT number, key FROM items WHERE number >= ? ORDER BY number"
_SUMS = f"SELECT substr(record, 1, 4) FROM users JOIN records ON records.id = users.number * {PLACES} + {HEAD}"
_BLOCKS = f"""
SELECT records.id % {PLACES}, record FROM users JOIN records
ON records.id BETWEEN users.number * {PLACES} + ?2 AND users.number * {PLACES} + ?3 - 1 WHERE users.key = ?1
"""
T = TypeVar("T")


@dataclass(frozen=True)
class StoreConfig:
    """What a store keeps of a user, and when an append returns."""

    max_events: int = 100_000  # beyond, those that arrived first are let go
    max_age: int | None = None  # seconds; :meth:`EmbeddedStore.compact` lets older events go; None: no event is too old
    durability: Durability = "disk"  # an append returns when it is on the disk, or when the "kernel" has it

    def __post_init__(self) -> None:
        for name, high in (("max_events", 2**30), ("max_age", 2**40)):
            value = getattr(self, name)
            good = (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high) or (
                value is None and name == "max_age"
            )
            check_value("[store]", name, value, good, f"whole numbers from 1 to {high}")
        check_value("[store]", "durability", self.durability, self.durability in DURABILITIES, "disk, kernel")


class _More(Exception):
    """A read needs records that the first statement did not bring."""


class EmbeddedStore:
    """A :class:`sidera.store.history_store.HistoryStore`. Open it with a folder; close it, or use ``with``."""

    def __init__(
        self, path: str | Path, config: StoreConfig | None = None, now: Callable[[], float] = time.time,
        *, must_exist: bool = False,
    ) -> None:  # fmt: skip
        """Made where there is none, unless it must exist."""
        self.path, self.config, self.now = Path(path), config or StoreConfig(), now
        if must_exist and not (self.path / MANIFEST).is_file() and not any(self.path.glob("*")):
            raise InputError(f"no store at {str(path)!r}", fix="give the folder of `sidera serve --store`")
        self.database = Database(self.path, PLAN, self.config.durability)
        try:
            self._check()
            self.keys = ItemKeys(self._given, self._give)
        except BaseException:
            self.database.close()
            raise

    @property
    def num_users(self) -> int:
        return self.database.expected("users")[0]

    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        return self.keys.numbers_of(keys)

    def item_keys(self, first: int = 0, number: int | None = None) -> list[str]:
        return self.keys.from_number(first, number)

    def settled(self, name: str, value: str | None = None) -> str | None:
        return self.database.settled(name, value)

    def append(
        self, user: str, events: Events, *, new_only: bool = False, names: Names | None = None,
        categories: Categories | None = None,
    ) -> int:  # fmt: skip
        return self.append_all([(user, events, names)], new_only=new_only, categories=categories)[0]

    def append_all(
        self, users: Sequence[tuple[str, Events, Names | None]], *, new_only: bool = False,
        categories: Categories | None = None,
    ) -> list[int]:  # fmt: skip
        parts = [(key_bytes(user, "user"), self._part(events, names)) for user, events, names in users]

        def work(connection: sqlite3.Connection, ledger: Ledger) -> list[int]:
            return [self._append(connection, ledger, key, part, new_only, categories) for key, part in parts]

        return self.database.write(work) if any(len(events) for _, events, _ in users) else [0] * len(users)

    def history(self, user: str, as_of: int | None = None, n: int | None = None, since: int = 0) -> Events | None:
        blocks = 0 if n is None else (n + BLOCK - 1) // BLOCK + 1
        found = self._read(user, blocks, lambda head, records: head.between(records, since, as_of, n))
        return None if found is None else found.events

    def in_category(self, user: str, category: str, n: int, as_of: int | None = None) -> Events | None:
        key, name = key_bytes(user, "user"), category.encode()
        with self.database.reading() as connection:
            number, head, _ = _head(connection, key)
            if number is None:
                return None
            row = connection.execute(_CATEGORY, (number, name)).fetchone()
            numbers = np.zeros(0, category_index.NUMBER) if row is None else numbers_in(key, name, row[0])
            return category_index.newest(head, _records(connection, key), numbers, n, as_of)

    def index(self, user: str, categories: Categories) -> None:
        key = key_bytes(user, "user")

        def work(connection: sqlite3.Connection, ledger: Ledger) -> None:
            number, head, _ = _head(connection, key)
            if number is not None:
                connection.execute("DELETE FROM categories WHERE user = ?", (number,))
                first, found = head.arrivals(_records(connection, key))
                _index(connection, key, number, part_of(found.events), first, categories)

        self.database.write(work)

    def arrivals(self, user: str, first: int = 0) -> tuple[int, Events]:
        found = self._read(user, 0, lambda head, records: head.arrivals(records, first))
        return (0, Events.of([], [])) if found is None else (found[0], found[1].events)

    def users(self, limit: int | None = None) -> list[str]:
        rows = self.database.rows("SELECT key FROM users LIMIT ?", (-1 if limit is None else limit,))
        return sorted(key.decode() for (key,) in rows)

    def newest_of_users(self) -> list[tuple[int, str]]:
        rows = self.database.rows(_NEWEST_OF_USERS)
        return sorted(((newest_in(record), key.decode()) for key, record in rows), reverse=True)

    def changes(self, after: int | None = None) -> Changes:
        (last,) = self.database.rows("SELECT coalesce(max(number), 0) FROM changes")[0]
        if after is None or after == last:
            return Changes(last, [])
        rows = self.database.rows(_CHANGES, (after,))
        if not rows or rows[0][0] > max(after, 1):  # the last one that the caller knows was let go
            return Changes(last, None)
        appended = [Change(key.decode(), first, end) for number, key, first, end in rows if number > after and key]
        return Changes(rows[-1][0], appended)

    def compact(self) -> list[str]:
        gone = []
        if self.config.max_age is not None:
            since = int(self.now()) - self.config.max_age
            gone = [user for user in self.users() if self._let_go(user.encode(), since)]
        self.database.shrink()
        return gone

    def copy_to(self, folder: str | Path) -> None:
        """A copy of this moment, while others read and write."""
        self.database.copy_to(Path(folder))

    def erase(self, user: str) -> bool:
        key = key_bytes(user, "user")

        erased = self.database.write(lambda connection, ledger: _erase(connection, ledger, key))
        if erased:
            self.database.empty_log()
        return erased

    def verify(self) -> dict[str, int]:
        """Read every record -> numbers of users, events and bytes; ArtifactError for the first that is damaged."""
        events = 0
        for user in self.users():
            events += len(self.arrivals(user)[1])
        return {"users": self.num_users, "events": events, "bytes": self.database.num_bytes}

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> EmbeddedStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- one user --------------------------------------------------------------------------------------------------

    def _part(self, events: Events, names: Names | None) -> Part:
        largest = int(events.item_ids.max(initial=-1))
        if largest >= self.keys.reach(largest):
            raise InputError(f"item number {largest} has no key", allowed="numbers that `numbers_of` gave")
        return part_of(events, names)

    def _append(
        self, connection: sqlite3.Connection, ledger: Ledger, key: bytes, part: Part, new_only: bool,
        categories: Categories | None,
    ) -> int:  # fmt: skip
        number, head, held_sum = _head(connection, key)
        if new_only and part.rows:
            times = part.times
            first, last = int(times.min()), int(times.max())
            held = None if first > head.newest else head.between(_records(connection, key), first, last + 1)
            part = new_of(held, part)
        if not part.rows:
            return 0
        if number is None:
            number = _new_number(connection)
            connection.execute("INSERT INTO users VALUES (?, ?)", (number, key))
            ledger.add("users", _checksum(number, key))
        change, base = head.appended(part, self.config.max_events), number * PLACES
        ledger.add("heads", _sum(change.head) - held_sum, 0)
        written = [(base + place, record) for place, record in [*change.blocks, (HEAD, change.head)]]
        connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", written)
        added = connection.execute(
            "INSERT INTO changes (user, first, end) VALUES (?, ?, ?)", (number, head.end, head.end + part.number)
        )
        if added.lastrowid and added.lastrowid % TIDY_EVERY == 0:
            connection.execute("DELETE FROM changes WHERE number <= ?", (added.lastrowid - MOST_CHANGES,))
        a, b = change.dropped
        if a < b:
            connection.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (base + a, base + b - 1))
        if categories is not None:
            _index(connection, key, number, part, head.end, categories)
        return part.number

    def _read(self, user: str, blocks: int, ask: Callable[[Head, Records], T]) -> T | None:
        """What ``ask`` says of a user's head, None for nobody; the newest ``blocks`` blocks come with the head."""
        key = key_bytes(user, "user")
        rows = self.database.rows(_NEWEST, (key, blocks + 1))
        if not rows:
            return None
        near: dict[int, bytes | None] = dict(rows)

        def records(a: int, b: int) -> list[bytes | None]:
            try:
                return [near[place] for place in range(a, b)]
            except KeyError:
                raise _More from None

        try:
            return ask(Head.read(key, near.get(HEAD)), records)
        except _More:
            with self.database.reading() as connection:
                if _number(connection, key) is None:
                    return None
                return ask(_head(connection, key)[1], _records(connection, key))

    def _let_go(self, key: bytes, since: int) -> bool:
        """Old events of a user; True when none is left and the user went, too."""

        def work(connection: sqlite3.Connection, ledger: Ledger) -> bool:
            number, head, held_sum = _head(connection, key)
            if number is None:
                return False
            kept = head.without_old(_records(connection, key), since)
            if kept.first == kept.end:
                return _erase(connection, ledger, key)
            if kept.first > head.first:
                base, a, b = number * PLACES, head.first // BLOCK, kept.first // BLOCK
                connection.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (base + a, base + b - 1))
                connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (base + HEAD, kept.record()))
                ledger.add("heads", _sum(kept.record()) - held_sum, 0)
            return False

        return self.database.write(work)

    def _given(self, first: int) -> list[bytes]:
        return [key for _, key in self.database.rows(_ITEMS, (first,))]

    def _give(self, keys: Sequence[bytes], known: int) -> None:
        def work(connection: sqlite3.Connection, ledger: Ledger) -> None:
            others = {key for _, key in connection.execute(_ITEMS, (known,))}
            (first,) = connection.execute("SELECT coalesce(max(number), -1) + 1 FROM items").fetchone()
            rows = list(enumerate((key for key in keys if key not in others), first))
            connection.executemany("INSERT INTO items VALUES (?, ?)", rows)
            ledger.add("items", sum(_checksum(number, key) for number, key in rows), len(rows))

        self.database.write(work)

    def _check(self) -> None:
        """Every user and every item key that must be there is there."""
        with self.database.reading() as connection:
            for name in ("users", "items"):
                rows = connection.execute(f"SELECT number, key FROM {name}").fetchall()
                expected = connection.execute("SELECT number, checksum FROM ledger WHERE name = ?", (name,)).fetchone()
                self.database.check(name, len(rows), sum(_checksum(number, key) for number, key in rows), expected)
            heads = connection.execute(_SUMS).fetchall()  # an older head is whole, too, and would hide events
            expected = connection.execute("SELECT number, checksum FROM ledger WHERE name = 'heads'").fetchone()
            self.database.check("heads", 0, sum(_sum(part) for (part,) in heads), expected)


def _head(connection: sqlite3.Connection, key: bytes) -> tuple[int | None, Head, int]:
    """Number and head of a user, and the checksum of its record; a new head where there is none."""
    row = connection.execute(_HEAD, (key,)).fetchone()
    return (None, Head(key), 0) if row is None else (int(row[0]), Head.read(key, row[1]), _sum(row[1]))


def _number(connection: sqlite3.Connection, key: bytes) -> int | None:
    row = connection.execute("SELECT number FROM users WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])


def _erase(connection: sqlite3.Connection, ledger: Ledger, key: bytes) -> bool:
    number = _number(connection, key)
    if number is None:
        return False
    row = connection.execute("SELECT record FROM records WHERE id = ?", (number * PLACES + HEAD,)).fetchone()
    ledger.remove("heads", _sum(row and row[0]), 0)
    connection.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (number * PLACES, number * PLACES + HEAD))
    connection.execute("DELETE FROM users WHERE number = ?", (number,))
    connection.execute("DELETE FROM categories WHERE user = ?", (number,))
    connection.execute("UPDATE changes SET user = -1 WHERE user = ?", (number,))  # the number may be given again
    ledger.remove("users", _checksum(number, key))
    return True


def _index(
    connection: sqlite3.Connection, key: bytes, number: int, part: Part, first: int, categories: Categories
) -> None:
    """New events of a user, of which the first is number ``first``, by category."""
    rows = []
    for category, numbers in category_index.new_numbers(part, first, categories).items():
        row = connection.execute(_CATEGORY, (number, category)).fetchone()
        rows.append((number, category, category_index.grown(key, category, None if row is None else row[0], numbers)))
    connection.executemany("INSERT OR REPLACE INTO categories VALUES (?, ?, ?)", rows)


def _new_number(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT coalesce(max(number), -1) + 1 FROM users").fetchone()
    return int(number)


def _records(connection: sqlite3.Connection, key: bytes) -> Records:
    def records(a: int, b: int) -> list[bytes | None]:
        found = dict(connection.execute(_BLOCKS, (key, a, b)).fetchall())
        return [found.get(place) for place in range(a, b)]

    return records


def _sum(record: object) -> int:
    """The checksum that a record begins with."""
    return int.from_bytes(record[:4], "little") if isinstance(record, bytes) else 0


def _checksum(number: int, key: object) -> int:
    return zlib.crc32(key, number & 0xFFFFFFFF) if isinstance(key, bytes) else -1  # another type: a damaged page
