"""Which category an item has, for the index of a history store by user and category.

    behaviour.index_by("brand")                                   # `sidera serve --category-index brand`
    behaviour.read("ann", n=20, category="acme")                  # reads the blocks that hold such events

A store is indexed by one feature of the items, for ever: every process that opens it indexes what it appends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.store.history_store import HistoryStore

INDEX, INDEXED = "category index", "category index of all users"  # names of what the store settles


class CategoryOf:
    """The value of one feature of a catalogue's items."""

    def __init__(self, catalog: Catalog, field: str) -> None:
        """InputError for a feature that is none, or that gives an item several values, or numbers."""
        named = [one for one in catalog.schema.owned("item") if one.kind == "category" and one.hash_size is None]
        features = {one.name: one for one in named}
        if field not in features:
            allowed = ", ".join(features) or "none: the catalogue was built without features of items"
            raise InputError(f"the store is to be indexed by {field!r}", allowed=allowed)
        self.catalog, self.field = catalog, field
        self._texts = (None, *(features[field].vocabulary or ()))  # by value; 0: unknown

    def __call__(self, ids: NDArray[np.integer]) -> list[str | None]:
        """(n,) items, -1: not in the catalogue -> the category of each."""
        known = np.asarray(ids) >= 0
        values = np.zeros(len(known), np.int64)
        values[known] = self.catalog.features[self.field].take(np.asarray(ids)[known])
        return [self._texts[value] for value in values.tolist()]


def settle_index(store: HistoryStore, catalog: Catalog, field: str) -> CategoryOf:
    """Index a store by a feature, its users of before too. InputError where it is indexed by another one."""
    category_of = CategoryOf(catalog, field)
    settled = store.settled(INDEX, field)
    if settled != field:
        raise InputError(f"the store is indexed by {settled!r}, not by {field!r}", fix="give an empty store")
    if store.settled(INDEXED) is None:
        keys = store.item_keys()
        texts = category_of(catalog.find_ids(keys))
        categories = {number: text for number, text in enumerate(texts) if text is not None}
        for user in store.users():
            store.index(user, categories)
        store.settled(INDEXED, field)
    return category_of
