"""Filters of a request as masks of the catalogue: which items may be answered at all.

    recommender.recommend([Request(history, filter=Filter.of({"brand": ["acme", "globex"], "popularity": {"min": 5}}))])

A filter is a conjunction of clauses over the columns of the Catalog's item table (``core.Filter``). The first filter
that names a column indexes it: its values in the order in which the trie has the items, and the items sorted by value.
A clause is then a few runs of the sorted items, and its size is known before it is read. The smallest clause names
items, the others are asked about these alone: a filter that leaves little costs little. They are asked in the order
of the smallest clause's column, where what they read stands side by side. Two columns that filters name together are
indexed together: what passes both clauses is a few runs again. Masks are kept by filter for the catalogue they were
made of; a catalogue of another ``items_version`` has its own.

Shape legend: N items · n items in the order of the trie: those that are alive · m items that are left.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from sidera.catalog.catalog import Catalog
from sidera.core import Clause, Filter, InputError
from sidera.data.feature import COUNTED, Feature
from sidera.decode.eligible import PrefixMask

KEPT = 64  # masks of one catalogue
KEPT_PAIRS = 8  # columns that are indexed together, of one catalogue: 6 bytes an item and pair
KEPT_BESIDE = 4  # columns in the order of another, of each: 1 to 4 bytes an item
PAIRED = 10_000  # items that the smallest clause leaves, before two are looked at together
LEAST_RUN = 64  # items of a pair of values, on average: fewer are as slow to read as one clause after another
KEY, POPULARITY = "item", "popularity"  # columns that every catalogue has: the publisher's key, training events
Name = TypeVar("Name")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class _Column:
    """A column in the order of the masks, and the places sorted by their value."""

    ranks: np.ndarray  # (n,) of each value among the distinct ones, in the narrowest type that holds them
    order: np.ndarray  # (n,) int32: places, by value
    distinct: np.ndarray  # (d,) ascending values that there are
    counts: np.ndarray  # (d,) places of each
    starts: np.ndarray  # (d+1,) where they begin in ``order``
    known: Mapping[str, int]  # text -> place among the distinct values; empty for numbers
    _beside: OrderedDict[_Column, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def of(cls, values: np.ndarray, vocabulary: Sequence[str] = ()) -> _Column:
        """``values`` (n,): whole numbers from 0."""
        distinct, ranks, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks = np.ascontiguousarray(ranks.astype(np.min_scalar_type(len(distinct))))
        order = ranks.argsort(kind="stable").astype(np.int32)
        known = {vocabulary[value - 1]: rank for rank, value in enumerate(distinct.tolist()) if value and vocabulary}
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(ranks, order, distinct.astype(np.int64), counts, starts, known)

    def __len__(self) -> int:
        """d"""
        return len(self.distinct)

    def beside(self, other: _Column) -> np.ndarray:
        """(n,) the other column's ranks in this one's order; those of the last few are kept."""
        if other not in self._beside:
            _put(self._beside, other, other.ranks.take(self.order), KEPT_BESIDE)
        self._beside.move_to_end(other)
        return self._beside[other]

    def chosen(self, clause: Clause) -> np.ndarray:
        """(d,) bool: which of the distinct values pass."""
        chosen = np.zeros(len(self), dtype=bool)
        if clause.is_range:
            low = 0 if clause.low is None else int(np.searchsorted(self.distinct, clause.low, "left"))
            high = len(self) if clause.high is None else int(np.searchsorted(self.distinct, clause.high, "right"))
            chosen[low:high] = True
            return chosen
        chosen[[rank for rank in map(self.known.get, clause.values) if rank is not None]] = True
        return chosen ^ clause.negated


class _ColumnTest:
    """A clause on a column, or two on a pair of columns."""

    def __init__(self, column: _Column, chosen: np.ndarray) -> None:
        """``chosen`` (d,) bool: which of the column's distinct values pass."""
        self.column, self.chosen, self.size = column, chosen, int(np.dot(chosen, column.counts))

    def places(self, others: Sequence[_ColumnTest] = ()) -> np.ndarray:
        """(m,) that pass this and the others, in any order."""
        found = self._in_order()
        for test in others:
            ranks = self.column.beside(test.column)
            if isinstance(found, slice):
                found = found.start + np.flatnonzero(test._chosen_of(ranks[found]))
            else:  # a mask as an index is four times as slow
                found = found.take(np.flatnonzero(test._chosen_of(ranks.take(found, mode="clip"))))
        return self.column.order[found] if isinstance(found, slice) else self.column.order.take(found, mode="clip")

    def holds(self, places: np.ndarray) -> np.ndarray:
        """(m,) bool: which of these places pass."""
        return self._chosen_of(self.column.ranks.take(places, mode="clip"))

    def _in_order(self) -> np.ndarray | slice:
        """(m,) what passes, as places in the column's order."""
        begins, ends = self.column.starts[self._turns].reshape(-1, 2).T  # (runs,)
        if len(begins) == 1:
            return slice(int(begins[0]), int(ends[0]))
        lengths = ends - begins
        shifts = begins - np.cumsum(lengths) + lengths  # of a run's places against their numbers here
        return np.arange(self.size) + shifts.repeat(lengths)

    def _chosen_of(self, ranks: np.ndarray) -> np.ndarray:
        """(m,) bool: which of the column's ranks are chosen."""
        if len(self._turns) != 2:
            return self.chosen.take(ranks, mode="clip")  # no checks: twice as fast
        low, high = self._turns.astype(ranks.dtype)
        return ranks - low < high - low  # without a sign: what is below the run wraps round, and is above it

    @cached_property
    def _turns(self) -> np.ndarray:
        """(2 * runs,) where the runs of chosen values begin and end."""
        around = np.concatenate([[False], self.chosen, [False]])
        return np.flatnonzero(around[1:] != around[:-1])


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two columns as one, whose values are the pairs that there are."""

    both: _Column  # a value: rank in the first * d of the second + rank in the second
    ranks: tuple[np.ndarray, np.ndarray]  # in the first, and in the second, of each distinct value

    @classmethod
    def of(cls, first: _Column, second: _Column) -> _Pair:
        both = _Column.of(first.ranks.astype(np.int64) * len(second) + second.ranks)
        return cls(both, np.divmod(both.distinct, len(second)))

    def test(self, first: np.ndarray, second: np.ndarray) -> _ColumnTest:
        """Of what passes both (d,)."""
        return _ColumnTest(self.both, first.take(self.ranks[0]) & second.take(self.ranks[1]))


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
        self._pairs: OrderedDict[tuple[str, str], _Pair | None] = OrderedDict()  # None: asked for once
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
                tests = self._paired({clause: self._test(clause) for clause in given.clauses})
                left = _passing(tests) if tests else np.arange(len(self._order))
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
        column = self._column(name)
        return _ColumnTest(column, column.chosen(clause))

    def _paired(self, tests: Mapping[Clause, _ColumnTest | _KeyTest]) -> list[_ColumnTest | _KeyTest]:
        """The tests, the smallest first; two of columns are one where the pair is indexed. A pair is indexed when it is
        asked for again."""
        found = sorted(tests.values(), key=lambda test: test.size)
        if len(found) < 2 or found[0].size < PAIRED:
            return found
        best: tuple[int, tuple[str, str], tuple[_ColumnTest, _ColumnTest]] | None = None
        for (one, first), (other, second) in combinations(sorted(tests.items(), key=lambda pair: pair[0].column), 2):
            if not isinstance(first, _ColumnTest) or not isinstance(second, _ColumnTest) or one.column == other.column:
                continue
            if len(first.column) * len(second.column) * LEAST_RUN <= len(self._order):
                asked = first.size * second.size, (one.column, other.column), (first, second)
                best = asked if best is None else min(best, asked, key=lambda each: each[0])
        if best is None:
            return found
        _, name, (first, second) = best
        pair = self._pairs.get(name)
        if pair is None:
            pair = _Pair.of(first.column, second.column) if name in self._pairs else None
            _put(self._pairs, name, pair, KEPT_PAIRS)
        self._pairs.move_to_end(name)
        if pair is None:
            return found
        return [pair.test(first.chosen, second.chosen), *(test for test in found if test not in (first, second))]

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


def _passing(tests: Sequence[_ColumnTest | _KeyTest]) -> np.ndarray:
    """(m,) places that pass all, in any order; the first test is the smallest."""
    first, *others = tests
    if isinstance(first, _ColumnTest):
        left = first.places([test for test in others if isinstance(test, _ColumnTest)])
        others = [test for test in others if isinstance(test, _KeyTest)]
    else:
        left = first.places()
    for test in others:
        left = left.take(np.flatnonzero(test.holds(left)))
    return left


def _put(kept: OrderedDict[Name, Made], name: Name, made: Made, most: int = KEPT) -> Made:
    kept[name] = made
    if len(kept) > most:
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
