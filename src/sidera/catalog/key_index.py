"""From a publisher's key to the item's number: sorted hashes, not a dictionary.

A dictionary of 10^9 keys takes some 100 GB in every process; two flat arrays take 12 bytes a key (hash and number) and
can lie in a file that all processes map. Keys that came later stand in a small dictionary that the versions share.

Equal hashes are told apart by comparing the keys themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from sidera.core import InputError
from sidera.ops.columns import Texts

MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))
MASK = 2**64 - 1
CHUNK = 1 << 20  # keys that are hashed at once
LATELY = 1 << 16  # keys that are remembered, about


class KeyIndex(Mapping[str, int]):
    """Numbers by key: ``hashes`` (n,) ascending and ``numbers`` (n,) of the first keys, a dictionary of the later ones.

    The keys asked for lately are remembered: a key keeps its number for ever.
    """

    def __init__(
        self,
        keys: Texts,
        hashes: np.ndarray,
        numbers: np.ndarray,
        later: dict[str, int] | None = None,
        lately: dict[str, int] | None = None,
    ) -> None:
        self.texts, self.hashes, self.numbers = keys, hashes, numbers
        # Both are shared by versions, each of which sees the numbers below its length.
        self._later = {} if later is None else later
        self._lately = {} if lately is None else lately

    @classmethod
    def build(cls, keys: Texts) -> KeyIndex:
        """InputError when a key occurs twice."""
        hashes = hash_keys(keys.arrow())
        order = np.argsort(hashes, kind="stable")
        index = cls(keys, hashes[order], order.astype(np.int32 if len(keys) < 2**31 else np.int64))
        index._check_distinct()
        return index

    @classmethod
    def of(cls, keys: Texts, hashes: np.ndarray, numbers: np.ndarray) -> KeyIndex:
        """What :meth:`build` made of ``keys`` before, checked and not sorted again; InputError when it is not."""
        if hashes.shape != numbers.shape or hashes.shape != (len(keys),) or numbers.dtype.kind != "i":
            raise InputError(f"the index has {hashes.shape} hashes of {numbers.shape} keys", allowed=f"({len(keys)},)")
        if len(keys) and not 0 <= numbers.min() <= numbers.max() < len(keys):
            raise InputError("the index names items that are not here", allowed=f"0..{len(keys) - 1}")
        index = cls(keys, hashes, numbers)
        index._check_distinct()
        if not np.array_equal(hash_keys(keys.arrow())[numbers], hashes) or (hashes[1:] < hashes[:-1]).any():
            raise InputError("the index is one of other keys")
        return index

    def _check_distinct(self) -> None:
        near = np.flatnonzero(self.hashes[1:] == self.hashes[:-1])
        if len(near):  # of one hash: nearly always one key
            suspects = self.numbers[np.unique(np.concatenate([near, near + 1]))]
            found, counts = np.unique(self.texts.take(suspects).astype(str), return_counts=True)
            if counts.max() > 1:
                raise InputError(
                    f"item id {str(found[counts.argmax()])!r} occurs {counts.max()} times", allowed="once each"
                )

    def extended(self, new: Sequence[str], keys: Texts) -> KeyIndex:
        """The index of ``keys``, which has the keys ``new``, all unknown so far, behind those of this one."""
        if len(set(new)) != len(new):
            twice = next(key for key in new if list(new).count(key) > 1)
            raise InputError(f"item id {twice!r} occurs {list(new).count(twice)} times", allowed="once each")
        size, later, lately = len(self.texts), self._later, self._lately
        if len(later) != max(0, size - len(self.hashes)):  # another version grew from this one
            later, lately = {key: number for key, number in later.items() if number < size}, {}
        later.update(zip(new, range(size, size + len(new)), strict=True))
        return KeyIndex(keys, self.hashes, self.numbers, later, lately)

    def head(self, keys: Texts) -> KeyIndex:
        """The index of ``keys``, the first of those of this one."""
        if len(keys) < len(self.hashes):
            return KeyIndex.build(keys)
        return KeyIndex(keys, self.hashes, self.numbers, self._later, self._lately)

    def find(self, wanted: Sequence[str]) -> np.ndarray:
        """(n,) int64 numbers of keys, -1 for those that are not here."""
        lately, later = self._lately, self._later
        found = [lately.get(key, -1) for key in wanted]
        if later:
            found = [later.get(key, number) for key, number in zip(wanted, found, strict=True)]
        numbers = np.array(found, dtype=np.int64)
        missing = [row for row, number in enumerate(found) if number < 0]
        if missing and len(self.hashes):
            asked = list(dict.fromkeys(wanted[row] for row in missing))  # a long history says its keys again and again
            by_hash = dict(zip(asked, self._by_hash([str(key) for key in asked]).tolist(), strict=True))
            numbers[missing] = [by_hash[wanted[row]] for row in missing]
            if len(lately) > LATELY:
                lately.clear()
            lately |= {key: number for key, number in by_hash.items() if number >= 0}
        return np.where(numbers < len(self.texts), numbers, -1)

    def _by_hash(self, wanted: list[str]) -> np.ndarray:
        numbers, size = np.full(len(wanted), -1, dtype=np.int64), len(self.texts)
        whole = [key.encode(errors="replace").decode() for key in wanted]  # no key holds half a character
        hashes = hash_keys(pa.array(whole, pa.large_string()))
        texts, places = np.array(wanted, dtype=object), np.searchsorted(self.hashes, hashes)
        rows = np.arange(len(wanted))
        while len(rows):  # one round, and one more for every hash that two keys share
            rows = rows[places[rows] < len(self.hashes)]
            rows = rows[self.hashes[places[rows]] == hashes[rows]]
            candidates = self.numbers[places[rows]].astype(np.int64)
            visible = candidates < size  # the others are of keys that this version lacks
            same_mask = np.zeros(len(rows), dtype=bool)
            same_mask[visible] = self.texts.take(candidates[visible]) == texts[rows[visible]]
            numbers[rows[same_mask]] = candidates[same_mask]
            rows = rows[~same_mask]
            places[rows] += 1
        return numbers

    def __getitem__(self, key: str) -> int:
        """Of one key: some microseconds. Ask :meth:`find` for many."""
        number = self._later.get(key, self._lately.get(key, -1))
        if number < 0 and len(self.hashes):
            wanted = np.uint64(hash_key(str(key)))
            place = int(np.searchsorted(self.hashes, wanted))
            while number < 0 and place < len(self.hashes) and self.hashes[place] == wanted:
                candidate = int(self.numbers[place])
                number = candidate if candidate < len(self.texts) and self.texts[candidate] == key else -1
                place += 1
        if not 0 <= number < len(self.texts):
            raise KeyError(key)
        return number

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def hash_key(key: str) -> int:
    """What :func:`hash_keys` gives for one key, without arrays."""
    content = key.encode()
    mixed = len(content)
    for depth in range(0, len(content), 8):
        mixed = (mixed ^ int.from_bytes(content[depth : depth + 8], "little")) * int(MULTIPLIERS[0]) & MASK
        mixed = (mixed ^ mixed >> 29) * int(MULTIPLIERS[1]) & MASK
        mixed ^= mixed >> 32
    return mixed


def hash_keys(keys: pa.LargeStringArray) -> np.ndarray:
    """(n,) uint64: eight bytes of the UTF-8 text at a time are multiplied in. The same in every process."""
    if not len(keys):
        return np.empty(0, dtype=np.uint64)
    return np.concatenate([_hashed(keys.slice(start, CHUNK)) for start in range(0, len(keys), CHUNK)])


def _hashed(keys: pa.LargeStringArray) -> np.ndarray:
    _, offsets, content = keys.buffers()
    bounds = np.frombuffer(offsets, np.int64, count=len(keys) + 1, offset=8 * keys.offset)
    start, end = int(bounds[0]), int(bounds[-1])
    data = np.zeros(end - start + 8, dtype=np.uint8)
    if end > start:
        data[: end - start] = np.frombuffer(content, np.uint8, count=end - start, offset=start)
    words = np.ndarray((end - start + 1,), np.dtype("<u8"), data, strides=(1,))  # eight bytes from every byte on
    begins, lengths = bounds[:-1] - start, np.diff(bounds)
    hashes = lengths.astype(np.uint64)
    for depth in range(0, int(lengths.max()), 8):
        rows = np.flatnonzero(lengths > depth)
        spare = np.clip(8 - (lengths[rows] - depth), 0, 7).astype(np.uint64) * np.uint64(8)  # bits of other keys
        word = (words[begins[rows] + depth] << spare) >> spare
        mixed = (hashes[rows] ^ word) * MULTIPLIERS[0]
        mixed = (mixed ^ (mixed >> np.uint64(29))) * MULTIPLIERS[1]
        hashes[rows] = mixed ^ (mixed >> np.uint64(32))
    return hashes
