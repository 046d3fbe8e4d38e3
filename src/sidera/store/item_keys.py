"""The item keys of a store: each key with a number of its own, for ever.

A key is durable before any event of its item is, so an event never has a number without a key. Other processes give
numbers too, so a key or a number that this process does not know is looked up before it is new.

Memory: a key costs its text and a place in a dictionary, about 150 bytes; a million items take 150 MB.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sidera.bounds import shown
from sidera.core import InputError

MAX_KEY_BYTES = 2**16 - 1
Given = Callable[[int], Iterable[bytes]]  # the keys of the numbers from one on, in their order
Give = Callable[[Sequence[bytes], int], object]  # numbers for keys that are not among the first so many; durable


class ItemKeys:
    """Key ↔ number, over an engine that keeps them. Any number of threads."""

    def __init__(self, given: Given, give: Give) -> None:
        self._given, self._give = given, give
        self._numbers: dict[str, int] = {}
        self._keys: list[str] = []
        self._lock = threading.Lock()
        self._follow()

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
            self._give(new, known)
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
        first = len(self._keys)
        texts = self._given(first)
        with self._lock:
            for number, text in enumerate(texts, first):
                if number == len(self._keys):  # another thread may have taken it meanwhile
                    key = text.decode()
                    self._numbers[key] = number
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
