"""The item keys of a store: each key with a number of its own, for ever.

A key is durable before any event of its item is, so an event never has a number without a key. Other processes give
numbers too, so a key or a number that this process does not know is looked up before it is new.

Memory: a key costs its text and a place in a dictionary, about 150 bytes; a million items take 150 MB.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sidera.bounds import shown
from sidera.core import InputError
from sidera.store.database import Database, Ledger

MAX_KEY_BYTES = 2**16 - 1
_FROM = "SELECT number, key FROM items WHERE number >= ? ORDER BY number"


class ItemKeys:
    """Key ↔ number. Any number of threads."""

    def __init__(self, database: Database) -> None:
        """ArtifactError when keys are missing or damaged."""
        self._database = database
        self._numbers: dict[str, int] = {}
        self._keys: list[str] = []
        self._lock = threading.Lock()
        rows = database.rows(_FROM, (0,))
        database.check("items", len(rows), sum(_checksum(number, text) for number, text in rows))
        self._take(rows)

    def __len__(self) -> int:
        return len(self._keys)

    def reach(self, number: int) -> int:
        """How many numbers have a key; looks again where ``number`` has none."""
        if number >= len(self._keys):
            self._follow()
        return len(self._keys)

    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        """(n,); new keys are durable when this returns. InputError, and nothing changes, for what is no key."""
        known = len(self._keys)  # before looking: what another thread takes in meanwhile is looked up again
        new = [key_bytes(key) for key in dict.fromkeys(keys) if key not in self._numbers]
        if new:
            self._database.write(lambda connection, ledger: _give(connection, ledger, known, new))
            self._follow()
        return np.fromiter((self._numbers[key] for key in keys), np.int32, count=len(keys))

    def from_number(self, first: int, number: int | None = None) -> list[str]:
        """The keys of ``number`` numbers (None: of all) from ``first`` on."""
        last = None if number is None else first + number
        if last is None or last > len(self._keys):
            self._follow()
        return self._keys[first:last]

    def _follow(self) -> None:
        """Take in the numbers that were given since, by whichever process."""
        self._take(self._database.rows(_FROM, (len(self._keys),)))

    def _take(self, rows: Iterable[tuple[int, bytes]]) -> None:
        with self._lock:
            for number, text in rows:
                if number == len(self._keys):  # another thread may have taken it meanwhile
                    key = text.decode()
                    self._numbers[key] = number
                    self._keys.append(key)


def _give(connection: sqlite3.Connection, ledger: Ledger, known: int, keys: Sequence[bytes]) -> None:
    """Give numbers to keys that are not among the first ``known``. Inside a transaction: nobody else gives any."""
    others = {text for _, text in connection.execute(_FROM, (known,))}
    (first,) = connection.execute("SELECT coalesce(max(number), -1) + 1 FROM items").fetchone()
    rows = list(enumerate((text for text in keys if text not in others), first))
    connection.executemany("INSERT INTO items VALUES (?, ?)", rows)
    ledger.add("items", sum(_checksum(number, text) for number, text in rows), len(rows))


def _checksum(number: int, text: bytes) -> int:
    return zlib.crc32(text, number & 0xFFFFFFFF)


def key_bytes(key: str, what: str = "item") -> bytes:
    """A key of an item or a user as it is written; InputError for what is none."""
    try:
        text = key.encode() if isinstance(key, str) else b""
    except UnicodeEncodeError:  # half a character
        text = b""
    if not 0 < len(text) <= MAX_KEY_BYTES:
        raise InputError(f"{what} key {shown(key)} cannot be used", allowed=f"text of 1 to {MAX_KEY_BYTES:,} bytes")
    return text
