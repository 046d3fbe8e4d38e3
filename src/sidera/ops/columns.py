"""Columns of a table that many versions share: a base that is never written, and rows that came later.

A version of a catalogue of 10^9 items must not copy 10^9 rows to have one more. So a :class:`Column` keeps its base as
it is (an array in memory or mapped from a file) and a short tail that the versions after it share: a longer version
writes behind the rows of a shorter one. Where two versions grow from the same one, the second copies the tail.
:class:`Texts` is the same for strings, :class:`Marks` a mask over rows of which few change.

They read like numpy arrays (``column[ids]``, ``column[5]``, ``len``, ``np.asarray``, comparisons). Trap: ``np.asarray``
of a column with a tail copies all of it, ``column[ids]`` copies what was asked for.

One thread at a time may make versions from one another; any number may read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROOM = 256  # rows of a first tail
FOLD = 4096  # changed rows of a mask that are looked up one by one; more become a new mask


class Rows(np.lib.mixins.NDArrayOperatorsMixin, ABC):
    """What makes a column read like a numpy array."""

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows of ``ids`` (n,), each in 0..len-1."""

    def __getitem__(self, key: Any) -> Any:
        """A row, the rows of a slice or of an array of ids; whatever else numpy takes goes through the whole array."""
        if isinstance(key, int | np.integer):
            place = key + len(self) if key < 0 else key
            if not 0 <= place < len(self):
                raise IndexError(f"row {key} of {len(self)}")
            return self.take(np.array([place]))[0]
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self))))
        if isinstance(key, np.ndarray) and key.dtype.kind in "iu":
            if key.size and not (-len(self) <= key.min() and key.max() < len(self)):
                raise IndexError(f"rows {key.min()}..{key.max()} of {len(self)}")
            ids = np.where(key < 0, key + len(self), key).reshape(-1)
            rows = self.take(ids)
            return rows.reshape(*key.shape, *rows.shape[1:])
        return np.asarray(self)[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(value) if isinstance(value, Rows) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **options)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(object)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self),)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def tolist(self) -> list[Any]:
        return np.asarray(self).tolist()


class _Tail:
    """Rows that came later, ``used`` of them written; the versions that share it see a beginning of them each."""

    def __init__(self, rows: np.ndarray, used: int) -> None:
        self.rows, self.used = rows, used


class Column(Rows):
    """(N, ...) numbers."""

    def __init__(self, base: np.ndarray, tail: _Tail | None = None, num_later: int = 0) -> None:
        self.base, self._tail = base, tail
        self._later = base[:0] if tail is None else tail.rows[:num_later]

    @classmethod
    def of(cls, rows: np.ndarray | Column) -> Column:
        return rows if isinstance(rows, Column) else cls(np.asarray(rows))

    def extended(self, rows: np.ndarray) -> Column:
        """This column and ``rows`` (n, ...) behind it."""
        before, total = len(self._later), len(self._later) + len(rows)
        tail = self._tail
        if tail is None or tail.used != before or total > len(tail.rows):
            room = np.empty((max(2 * total, ROOM), *self.base.shape[1:]), self.base.dtype)
            room[:before] = self._later
            tail = _Tail(room, before)
        tail.rows[before:total] = rows
        tail.used = total
        return Column(self.base, tail, total)

    def replaced(self, ids: np.ndarray, rows: np.ndarray) -> Column:
        """This column with other ``rows`` (n, ...) at ``ids`` (n,). Copies all of it."""
        whole = np.array(self)
        whole[ids] = rows
        return Column(whole)

    def head(self, count: int) -> Column:
        """The first ``count`` rows."""
        if count <= len(self.base):
            return Column(self.base[:count])
        return Column(self.base, self._tail, count - len(self.base))

    def __getitem__(self, key: Any) -> Any:
        if len(self._later):
            return super().__getitem__(key)
        if isinstance(key, np.ndarray) and key.dtype.kind in "iu":  # four times as fast as base[key] for rows
            return np.asarray(self.base).take(key, axis=0)
        return self.base[key]

    def take(self, ids: np.ndarray) -> np.ndarray:
        size = len(self.base)
        if not len(self._later) or not len(ids) or ids.max() < size:
            return self.base[ids]
        rows = np.empty((len(ids), *self.base.shape[1:]), self.base.dtype)
        late = ids >= size
        rows[~late], rows[late] = self.base[ids[~late]], self._later[ids[late] - size]
        return rows

    def __len__(self) -> int:
        return len(self.base) + len(self._later)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate([self.base, self._later]) if len(self._later) else np.asarray(self.base)
        return np.array(whole, dtype=dtype) if copy else whole.astype(dtype or whole.dtype, copy=False)

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.base.shape[1:])


class Texts(Rows):
    """(N,) strings, None where there is none; the base is an Arrow array, which may lie in a mapped file."""

    def __init__(self, base: pa.LargeStringArray, later: list[str | None] | None = None, num_later: int = 0) -> None:
        self.base, self._tail, self._num_later = base, [] if later is None else later, num_later

    @classmethod
    def of(cls, texts: Any) -> Texts:
        """A sequence of strings, a numpy array of them, or an Arrow array or column."""
        if isinstance(texts, Texts):
            return texts
        if isinstance(texts, np.ndarray) and texts.dtype.kind != "O":
            texts = texts.astype(object)
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.chunk(0) if texts.num_chunks == 1 else texts.combine_chunks()  # one chunk would be copied too
        base = texts.cast(pa.large_string()) if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
        return cls(base)

    def extended(self, texts: Sequence[str | None]) -> Texts:
        """This column and ``texts`` behind it."""
        tail = self._tail if len(self._tail) == self._num_later else self._tail[: self._num_later]
        tail.extend(texts)
        return Texts(self.base, tail, self._num_later + len(texts))

    def replaced(self, ids: np.ndarray, texts: Sequence[str | None]) -> Texts:
        """This column with other ``texts`` at ``ids`` (n,), which differ from each other. Copies all of it."""
        whole, mask = self.arrow(), np.zeros(len(self), dtype=bool)
        mask[ids] = True
        ordered = [texts[place] for place in np.argsort(ids, kind="stable")]
        return Texts(pc.replace_with_mask(whole, pa.array(mask), pa.array(ordered, pa.large_string())))

    def head(self, count: int) -> Texts:
        """The first ``count`` rows."""
        if count <= len(self.base):
            return Texts(self.base.slice(0, count))
        return Texts(self.base, self._tail, count - len(self.base))

    def take(self, ids: np.ndarray) -> np.ndarray:
        if not self._num_later:
            return self.base.take(pa.array(ids)).to_numpy(zero_copy_only=False)
        size = len(self.base)
        early = self.base.take(pa.array(np.minimum(ids, size - 1))).to_numpy(False) if size else None
        rows = np.empty(len(ids), dtype=object)
        if early is not None:
            rows[:] = early
        for place in np.flatnonzero(ids >= size):
            rows[place] = self._tail[ids[place] - size]
        return rows

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer) and 0 <= key < len(self.base):
            return self.base[int(key)].as_py()
        return super().__getitem__(key)

    def __len__(self) -> int:
        return len(self.base) + self._num_later

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(len(self), dtype=object)
        whole[: len(self.base)] = self.base.to_numpy(zero_copy_only=False)
        whole[len(self.base) :] = self._tail[: self._num_later]
        return whole if dtype is None else whole.astype(dtype)

    def astype(self, dtype: Any) -> np.ndarray:
        return np.asarray(self).astype(dtype)

    def arrow(self) -> pa.LargeStringArray:
        if not self._num_later:
            return self.base
        return pa.concat_arrays([self.base, pa.array(self._tail[: self._num_later], pa.large_string())])


class Marks(Rows):
    """(N,) bool, True for few rows: a base mask, and the rows that were marked since."""

    def __init__(self, base: np.ndarray, size: int, num_marked: int, since: np.ndarray) -> None:
        self.base, self.size, self.num_marked, self.since = base, size, num_marked, since

    @classmethod
    def of(cls, mask: np.ndarray | Marks) -> Marks:
        if isinstance(mask, Marks):
            return mask
        mask = np.asarray(mask, dtype=bool)
        return cls(mask, len(mask), int(mask.sum()), np.empty(0, np.int64))

    @classmethod
    def none(cls, size: int) -> Marks:
        return cls(np.zeros(0, dtype=bool), size, 0, np.empty(0, np.int64))

    def marked(self, ids: np.ndarray) -> Marks:
        """Also True for ``ids`` (n,), which were False and differ from each other."""
        since = np.insert(self.since, np.searchsorted(self.since, np.sort(ids)), np.sort(ids))
        if len(since) > FOLD + len(self.base) // 8:
            return Marks.of(Marks(self.base, self.size, 0, since).__array__())
        return Marks(self.base, self.size, self.num_marked + len(ids), since)

    def unmarked(self, ids: np.ndarray) -> Marks:
        """False for ``ids`` (n,), which were True and differ from each other."""
        early = ids[ids < len(self.base)]
        base = self.base
        if self.base[early].any():
            base = self.base.copy()
            base[early] = False
        since = self.since[~np.isin(self.since, ids)]
        return Marks(base, self.size, self.num_marked - len(ids), since)

    def extended(self, count: int) -> Marks:
        """``count`` rows of False behind."""
        return Marks(self.base, self.size + count, self.num_marked, self.since)

    def take(self, ids: np.ndarray) -> np.ndarray:
        marked = np.isin(ids, self.since)
        early = ids < len(self.base)
        marked[early] |= self.base[ids[early]]
        return marked

    def __len__(self) -> int:
        return self.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.zeros(self.size, dtype=bool)
        whole[: len(self.base)] = self.base
        whole[self.since] = True
        return whole if dtype is None else whole.astype(dtype)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(bool)

    def any(self) -> bool:
        return self.num_marked > 0

    def sum(self) -> int:
        return self.num_marked
