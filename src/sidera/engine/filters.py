"""Filters of a request as masks of the catalogue: which items may be answered at all.

    recommender.recommend([Request(history, filter=Filter.of({"brand": ["acme", "globex"], "popularity": {"min": 5}}))])

A filter is a conjunction of clauses over the columns of the Catalog's item table (``core.Filter``). Columns are copied
once into the order in which the trie has its items, in the narrowest type that holds them; a clause is then one
comparison over a column, and the mask lies as the search reads it (:class:`sidera.decode.eligible.PrefixMask`). Masks
are kept by filter for the catalogue they were made of; a catalogue of another ``items_version`` has its own.

Shape legend: N items · n items in the order of the trie: those that are alive.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from sidera.catalog.catalog import Catalog
from sidera.core import Clause, Filter, InputError
from sidera.decode.eligible import PrefixMask

KEPT = 64  # masks of one catalogue
KEY, POPULARITY = "item", "popularity"  # columns that every catalogue has: the publisher's key, training events


class FilterTable:
    """The columns of one catalogue, and the masks that were made of them last."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._columns: dict[str, np.ndarray] = {}
        self._masks: OrderedDict[Filter, np.ndarray | PrefixMask] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that a clause can name."""
        return (KEY, POPULARITY, *self.catalog.categories)

    @cached_property
    def _order(self) -> np.ndarray | None:
        """(n,) item ids as the masks have them; None: every item, by id."""
        return self.catalog.trie.leaf_items if self.catalog.has_codes else None

    def prefix_mask(self, given: Filter) -> PrefixMask:
        """For a search in the catalogue's trie."""
        found = self._kept(given, lambda: PrefixMask.of_places(self.catalog.trie, self._mask(given)))
        assert isinstance(found, PrefixMask)
        return found

    def item_mask(self, given: Filter) -> np.ndarray:
        """(N,) bool: the items that pass. Removed items do not."""
        if self._order is None:
            found = self._kept(given, lambda: self._mask(given) & ~np.asarray(self.catalog.removed))
            assert isinstance(found, np.ndarray)
            return found
        mask = np.zeros(self.catalog.num_items, dtype=bool)
        mask[self._order] = self.prefix_mask(given).places
        return mask

    def num_eligible(self, given: Filter) -> int:
        """Items that pass."""
        if self._order is None:
            return int(self.item_mask(given).sum())
        return self.prefix_mask(given).num_items

    def _kept(self, given: Filter, make: Callable[[], np.ndarray | PrefixMask]) -> np.ndarray | PrefixMask:
        with self._lock:
            found = self._masks.get(given)
            if found is None:
                found = self._masks[given] = make()
                if len(self._masks) > KEPT:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(given)
            return found

    def _mask(self, given: Filter) -> np.ndarray:
        number = self.catalog.num_items if self._order is None else len(self._order)
        mask: np.ndarray | None = None
        for clause in given.clauses:
            passed = self._passed(clause)
            mask = passed if mask is None else np.logical_and(mask, passed, out=mask)
        return np.ones(number, dtype=bool) if mask is None else mask

    def _passed(self, clause: Clause) -> np.ndarray:
        """(n,) bool: the items that pass one clause."""
        if clause.column == KEY:
            _check_kind(clause, "texts", clause.is_range)
            return self._of_keys(clause)
        if clause.column == POPULARITY:
            _check_kind(clause, "a range", not clause.is_range)
            return _in_range(self._column(POPULARITY), clause)
        vocabulary = self.catalog.schema.item_fields.get(clause.column)
        if vocabulary is None or clause.column not in self.catalog.categories:
            raise InputError(f"the filter names column {clause.column!r}", allowed=", ".join(self.names))
        _check_kind(clause, "texts", clause.is_range)
        numbers = {value: number for number, value in enumerate(vocabulary, 1)}
        return _among(self._column(clause.column), [numbers.get(value, -1) for value in clause.values], clause.negated)

    def _of_keys(self, clause: Clause) -> np.ndarray:
        ids = self.catalog.find_ids(clause.values)
        named = np.full(self.catalog.num_items, clause.negated)
        named[ids[ids >= 0]] = not clause.negated
        return named if self._order is None else named[self._order]

    def _column(self, name: str) -> np.ndarray:
        """(n,) a column in the order of the masks, in the narrowest type."""
        if name not in self._columns:
            column = self.catalog.popularity if name == POPULARITY else self.catalog.categories[name]
            values = np.asarray(column) if self._order is None else column.take(self._order)
            narrow = np.min_scalar_type(int(values.max(initial=0)))
            self._columns[name] = np.ascontiguousarray(values.astype(narrow, copy=False))
        return self._columns[name]


_TABLES: WeakKeyDictionary[Catalog, FilterTable] = WeakKeyDictionary()
_TABLES_LOCK = threading.Lock()


def filter_table(catalog: Catalog) -> FilterTable:
    """The table of a catalogue; made at the first call and kept as long as the catalogue."""
    with _TABLES_LOCK:
        found = _TABLES.get(catalog)
        if found is None:
            found = _TABLES[catalog] = FilterTable(catalog)
        return found


def check_filters(catalog: Catalog, filters: Sequence[Filter | None]) -> None:
    """InputError where a filter names a column that is not there, or asks it for what it has not."""
    for given in filters:
        if given is not None:
            filter_table(catalog).num_eligible(given)


def _check_kind(clause: Clause, allowed: str, wrong: bool) -> None:
    if wrong:
        raise InputError(f"the filter's column {clause.column!r} is given {clause.shown}", allowed=allowed)


def _among(values: np.ndarray, numbers: Sequence[int], negated: bool) -> np.ndarray:
    """True where a value is one of ``numbers``, or is none of them."""
    there = [number for number in numbers if number >= 0]
    if len(there) == 1:
        return values != there[0] if negated else values == there[0]
    chosen = np.full(int(values.max(initial=0)) + 1, negated)
    chosen[[number for number in there if number < len(chosen)]] = not negated
    return chosen[values]


def _in_range(values: np.ndarray, clause: Clause) -> np.ndarray:
    low, high = clause.low, clause.high
    if low is not None and high is not None:
        return np.logical_and(values >= low, values <= high)
    return values >= low if low is not None else values <= high
