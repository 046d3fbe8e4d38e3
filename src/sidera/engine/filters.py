"""Filters of a request as masks of the catalogue: which items may be answered at all.

    recommender.recommend([Request(history, filter=Filter.of({"brand": ["acme", "globex"], "popularity": {"min": 5}}))])

A filter is a conjunction of clauses over the columns of the Catalog's item table (``core.Filter``). The first filter
that names a column indexes it: its values in the order in which the trie has the items, and the items sorted by value.
A clause is then a few runs of the sorted items, and its size is known before it is read. The smallest clause names
items, the others are asked about these alone: a filter that leaves little costs little. Masks are kept by filter for
the catalogue they were made of; a catalogue of another ``items_version`` has its own.

Shape legend: N items · n items in the order of the trie: those that are alive · m items that are left.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from sidera.catalog.catalog import Catalog
from sidera.core import Clause, Filter, InputError
from sidera.data.feature import COUNTED, Feature
from sidera.decode.eligible import PrefixMask

KEPT = 64  # masks of one catalogue
KEY, POPULARITY = "item", "popularity"  # columns that every catalogue has: the publisher's key, training events
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class _Column:
    """A column in the order of the masks, and the places sorted by their value."""

    values: np.ndarray  # (n,)
    order: np.ndarray  # (n,) int64: places, by value
    distinct: np.ndarray  # (d,) ascending values that there are
    starts: np.ndarray  # (d+1,) where the places of each begin in ``order``
    known: Mapping[str, int]  # text -> value; empty for numbers

    @classmethod
    def of(cls, values: np.ndarray, vocabulary: Sequence[str]) -> _Column:
        """``values`` (n,): whole numbers from 0; kept in the narrowest type that holds them."""
        narrow = np.min_scalar_type(int(values.max(initial=0)))
        values = np.ascontiguousarray(values.astype(narrow, copy=False))
        distinct, counts = np.unique(values, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)])
        known = {value: number for number, value in enumerate(vocabulary, 1)}
        return cls(values, values.argsort(kind="stable"), distinct.astype(np.int64), starts, known)


class _ColumnTest:
    """A clause on a column."""

    def __init__(self, column: _Column, clause: Clause) -> None:
        self.column, self.clause, last = column, clause, len(column.distinct)
        if clause.is_range:
            low = 0 if clause.low is None else int(np.searchsorted(column.distinct, clause.low, "left"))
            high = last if clause.high is None else int(np.searchsorted(column.distinct, clause.high, "right"))
            ends = [low, max(low, high)]
        else:
            self.chosen = np.zeros(last, dtype=bool)  # of the distinct values
            numbers = np.array([column.known[value] for value in clause.values if value in column.known], np.int64)
            at = np.searchsorted(column.distinct, numbers)
            there = at < last
            there[there] = column.distinct[at[there]] == numbers[there]
            self.chosen[at[there]] = True
            self.chosen ^= clause.negated
            ends = np.flatnonzero(np.diff(self.chosen, prepend=False, append=False)).tolist()
        bounds = column.starts[ends].tolist()
        self.runs = list(zip(bounds[::2], bounds[1::2], strict=True))
        self.size = sum(high - low for low, high in self.runs)

    def places(self) -> np.ndarray:
        """(m,) that pass, in any order."""
        parts = [self.column.order[low:high] for low, high in self.runs]
        return parts[0] if len(parts) == 1 else np.concatenate([self.column.order[:0], *parts])

    def holds(self, places: np.ndarray) -> np.ndarray:
        """(m,) bool: which of these places pass."""
        values, low, high = self.column.values.take(places, mode="clip"), self.clause.low, self.clause.high
        if not self.clause.is_range:
            table = np.zeros(int(self.column.distinct[-1]) + 1, dtype=bool)
            table[self.column.distinct] = self.chosen
            return table.take(values, mode="clip")  # twice as fast as with checks
        passed = values >= low if low is not None else values <= high
        return passed if low is None or high is None else passed & (values <= high)


class _KeyTest:
    """A clause on the items themselves."""

    def __init__(self, places: np.ndarray, negated: bool, number: int) -> None:
        """``places``: of the items that it names, of ``number``."""
        self.named, self.negated, self.number = np.unique(places), negated, number
        self.size = number - len(self.named) if negated else len(self.named)

    def places(self) -> np.ndarray:
        if not self.negated:
            return self.named
        return np.delete(np.arange(self.number), self.named)

    def holds(self, places: np.ndarray) -> np.ndarray:
        return np.isin(places, self.named) != self.negated


class FilterTable:
    """The columns of one catalogue, and the masks that were made of them last."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._columns: dict[str, _Column] = {}
        self._left: OrderedDict[Filter, np.ndarray] = OrderedDict()
        self._masks: OrderedDict[Filter, PrefixMask] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that a clause can name."""
        return (KEY, POPULARITY, *self._features)

    @cached_property
    def _features(self) -> dict[str, Feature]:
        """Those whose values have names; hashed values share numbers, so a clause could let others through."""
        owned = self.catalog.schema.owned("item")
        return {each.name: each for each in owned if each.kind in COUNTED and each.hash_size is None}

    def prefix_mask(self, given: Filter) -> PrefixMask:
        """For a search in the catalogue's trie."""
        with self._lock:
            found = self._masks.get(given)
            if found is None:
                found = _put(self._masks, given, PrefixMask(self.catalog.trie, self.left(given)))
            self._masks.move_to_end(given)
            return found

    def item_mask(self, given: Filter) -> np.ndarray:
        """(N,) bool: the items that pass. Removed items do not."""
        mask = np.zeros(self.catalog.num_items, dtype=bool)
        mask[self._order[self.left(given)]] = True
        return mask

    def num_eligible(self, given: Filter) -> int:
        """Items that pass."""
        return len(self.left(given))

    def left(self, given: Filter) -> np.ndarray:
        """(m,) the items that pass, by their place in the order of the masks, ascending."""
        with self._lock:
            left = self._left.get(given)
            if left is None:
                tests = sorted((self._test(clause) for clause in given.clauses), key=lambda test: test.size)
                left = tests[0].places() if tests else np.arange(len(self._order))
                for test in tests[1:]:
                    left = left.take(np.flatnonzero(test.holds(left)))  # a mask as an index is four times as slow
                left = _put(self._left, given, np.sort(left).astype(np.int64, copy=False))
            self._left.move_to_end(given)
            return left

    @cached_property
    def _order(self) -> np.ndarray:
        """(n,) item ids, as the masks have them: in the order of the trie, or by id."""
        if self.catalog.has_codes:
            return self.catalog.trie.leaf_items
        return np.flatnonzero(~np.asarray(self.catalog.removed))

    def _test(self, clause: Clause) -> _ColumnTest | _KeyTest:
        name, number = clause.column, len(self._order)
        if name not in self.names:
            raise InputError(f"the filter names column {name!r}", allowed=", ".join(self.names))
        if clause.is_range != (name == POPULARITY):
            allowed = "a range" if name == POPULARITY else "texts"
            raise InputError(f"the filter's column {name!r} is given {clause.shown}", allowed=allowed)
        if name == KEY:
            ids = self.catalog.find_ids(clause.values)
            places = self._place_of_item[ids[ids >= 0]]
            return _KeyTest(places[places < number], clause.negated, number)
        if name != POPULARITY and self._features[name].kind != "category":  # several values an item
            numbers = [self._features[name].number_of(value) or -1 for value in clause.values]
            has_mask = np.isin(self.catalog.features[name].take(self._order), numbers).any(axis=1)
            return _KeyTest(np.flatnonzero(has_mask), clause.negated, number)
        return _ColumnTest(self._column(name), clause)

    @cached_property
    def _place_of_item(self) -> np.ndarray:
        """(N,) where an item stands in ``_order``; behind its end where it does not."""
        places = np.full(self.catalog.num_items, len(self._order), dtype=np.int32)
        places[self._order] = np.arange(len(self._order), dtype=np.int32)
        return places

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            column = self.catalog.popularity if name == POPULARITY else self.catalog.features[name]
            vocabulary = () if name == POPULARITY else self._features[name].vocabulary or ()
            self._columns[name] = _Column.of(column.take(self._order), vocabulary)
        return self._columns[name]


def _put(kept: OrderedDict[Filter, Made], given: Filter, made: Made) -> Made:
    kept[given] = made
    if len(kept) > KEPT:
        kept.popitem(last=False)
    return made


_TABLES: WeakKeyDictionary[Catalog, FilterTable] = WeakKeyDictionary()
_TABLES_LOCK = threading.Lock()


def filter_table(catalog: Catalog) -> FilterTable:
    """The table of a catalogue; made at the first call and kept as long as the catalogue."""
    with _TABLES_LOCK:
        found = _TABLES.get(catalog)
        if found is None:
            found = _TABLES[catalog] = FilterTable(catalog)
        return found
