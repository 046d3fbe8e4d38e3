"""The item keys of an embedded store: an append-only file, each key with the number of its place in it.

A record holds the new keys of one call. It is on the disk before any event of these items is, so an event never has a
number without a key. Numbers are never given again.

Memory: a key costs its text and a place in a dictionary, about 150 bytes; a million items take 150 MB.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidera.bounds import shown
from sidera.core import ArtifactError, InputError
from sidera.store.record_log import RecordLog, cut, read_records

KEYS = 1  # the kind of a record
MAX_KEY_BYTES = 2**16 - 1


class ItemKeys:
    """Key ↔ number. Any number of threads."""

    def __init__(self, path: Path) -> None:
        self._numbers: dict[str, int] = {}
        self._keys: list[str] = []
        self._lock = threading.Lock()
        self.torn_bytes = 0
        if path.exists():
            records, self.torn_bytes = read_records(path)
            for _, payload in records:
                self._keep(_unpacked(path, payload))
            if len(self._numbers) != len(self._keys):
                raise ArtifactError(f"{path} is damaged: it holds a key twice", fix="restore it from a backup")
            cut(path, self.torn_bytes)
        self._log = RecordLog(path, sync=True)  # also in a store that does not sync: events are nothing without keys

    def __len__(self) -> int:
        return len(self._keys)

    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        """(n,); new keys are on the disk when this returns. InputError, and nothing changes, for what is no key."""
        with self._lock:
            new = [key for key in dict.fromkeys(keys) if key not in self._numbers]
            if new:
                self._log.append(KEYS, b"".join(struct.pack("<H", len(text)) + text for text in map(key_bytes, new)))
                self._keep(new)
            return np.fromiter((self._numbers[key] for key in keys), np.int32, count=len(keys))

    def from_number(self, first: int) -> list[str]:
        """The keys of the numbers from ``first`` on."""
        return self._keys[first:]

    def close(self) -> None:
        self._log.close()

    def _keep(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)


def key_bytes(key: str, what: str = "item") -> bytes:
    """A key of an item or a user as it is written; InputError for what is none."""
    try:
        text = key.encode() if isinstance(key, str) else b""
    except UnicodeEncodeError:  # half a character
        text = b""
    if not 0 < len(text) <= MAX_KEY_BYTES:
        raise InputError(f"{what} key {shown(key)} cannot be used", allowed=f"text of 1 to {MAX_KEY_BYTES:,} bytes")
    return text


def _unpacked(path: Path, payload: bytes) -> list[str]:
    keys, place = [], 0
    try:
        while place < len(payload):
            (length,) = struct.unpack_from("<H", payload, place)
            text = payload[place + 2 : place + 2 + length]
            if len(text) != length:
                raise ValueError("cut off")
            keys.append(text.decode())
            place += 2 + length
    except (ValueError, struct.error) as error:
        raise ArtifactError(f"{path} is damaged: {error}", fix="restore it from a backup") from None
    return keys
