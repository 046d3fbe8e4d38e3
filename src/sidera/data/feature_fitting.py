"""Features are learned here: what a recipe declares, or, where it declares none, what the log's tables hold.

Vocabularies and scales of items and users come from their whole tables, which hold no label. Those of requests and
events come from training events alone.

Shape legend: n values · W width · E events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.feature import (
    COUNTED,
    LENGTHS,
    LISTS,
    MAX_VOCABULARY,
    MEASURED,
    Feature,
    FeatureConfig,
    Kind,
    Owner,
    Scale,
    entries_of,
    measures_of,
    texts_of,
    too_many,
    whole,
)

ITEM_FIELDS = ("creator", "brand", "tags", "categories", "genres")  # read where an items table has them
MAX_PROFILE_VALUES = 1000  # a column with more values names people, not kinds of people
# What came of an exposure is not known when it is asked for: no feature of a request may be read from these.
OUTCOMES = ("positive", "purchase", "is_purchase", "long_view", "is_long_view", "click", "is_click", "clicked", "like",
            "is_like", "liked", "follow", "dislike", "hate", "watch_time", "rating")  # fmt: skip


def declared_features(
    dataset: Dataset, declared: Mapping[str, FeatureConfig], known_mask: np.ndarray
) -> tuple[Feature, ...]:
    """Those that models read, in the order of the recipe. ``known_mask`` (E,): events that may be learned from."""
    found = []
    for name, entry in declared.items():
        source = entry.source or name
        if entry.owner == "request" and source in OUTCOMES:
            raise InputError(
                f"[data.features.{name}] is of the request and read from {source!r}, which is known only afterwards",
                allowed="what is known when the request comes",
                fix='owner = "event": what came of the events before it',
            )
        column = column_of(dataset, entry.owner, source)
        if column is None:
            raise InputError(
                f"[data.features.{name}] is read from {source!r}, which the {entry.owner}'s table has not",
                allowed=", ".join(columns_of(dataset, entry.owner)) or "nothing: it has no column",
            )
        if entry.kind == "text":
            continue  # the catalogue's encoder reads it (``DataConfig.text_columns``)
        if entry.owner in ("request", "event"):
            column = column.filter(pa.array(known_mask))
        feature = _fitted(name, entry, source, column)
        if feature.num_values == 1 if feature.kind in COUNTED else not _says_anything(feature, column):
            raise InputError(f"{feature.place} has no value in any row", fix="leave the declaration out")
        found.append(feature)
    return tuple(found)


def found_features(dataset: Dataset) -> tuple[Feature, ...]:
    """Of a recipe that declares none: categories of items (``ITEM_FIELDS``) and users, numbers and vectors of items.

    Whole numbers of items are left out: they are years, counts, or names.
    """
    items, users, found = dataset.items, dataset.users, []
    for name in ITEM_FIELDS:
        if name in items.column_names:
            found.append(_category(name, "item", items[name]))
    for name in users.column_names[1:]:
        kind = users[name].type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
            feature = _category(name, "user", users[name])
            if 0 < len(feature.vocabulary) <= MAX_PROFILE_VALUES:
                found.append(feature)
    taken = {feature.name for feature in found if feature.owner == "item"}
    for name in items.column_names:
        kind, column = items[name].type, items[name].combine_chunks()
        measured: Kind | None = None
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            measured = "number"
        elif pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
            widths = pc.unique(pc.list_value_length(column)).to_pylist()
            measured = "vector" if len(widths) == 1 and widths[0] else None
        if measured is not None and name not in taken:
            found.append(_measured(name, measured, "item", name, column, "auto", required=False))
    return tuple(found)


def column_of(dataset: Dataset, owner: Owner, source: str) -> pa.ChunkedArray | pa.Array | None:
    """(n,) the owner's column, a row per item, user or event of the log; None where there is none."""
    if owner in ("item", "user"):
        table = dataset.items if owner == "item" else dataset.users
        return table[source] if source in table.column_names else None
    values = dataset.feedback.get(source)
    return None if values is None else pa.array(values, from_pandas=True)  # NaN: not known


def values_of(dataset: Dataset, feature: Feature, rows: slice) -> list[Any]:
    """What the owner's table says in these rows, as a request would say it; None where nothing."""
    column = column_of(dataset, feature.owner, feature.source)
    return [None] * (rows.stop - rows.start) if column is None else column[rows].to_pylist()


def columns_of(dataset: Dataset, owner: Owner) -> list[str]:
    if owner in ("item", "user"):
        table = dataset.items if owner == "item" else dataset.users
        return [name for name in table.column_names if name != "key"]
    return list(dataset.feedback)


def vocabulary_of(texts: pa.Array) -> tuple[str, ...]:
    """The different values, sorted."""
    return tuple(sorted(value for value in pc.unique(texts).to_pylist() if value))


def _fitted(name: str, entry: FeatureConfig, source: str, column: pa.ChunkedArray | pa.Array) -> Feature:
    column = whole(column)
    if entry.kind in MEASURED:
        return _measured(name, entry.kind, entry.owner, source, column, entry.scale, entry.required)
    where = f"[data.features.{name}]"
    length = entry.length or LENGTHS.get(entry.kind, 0)
    vocabulary, unfit = entry.vocabulary, Feature(name, entry.kind, entry.owner, source)
    texts = entries_of(column, entry.kind, unfit.place)[0] if entry.kind in LISTS else texts_of(column, unfit.place)
    if not vocabulary and entry.hash_size is None:
        vocabulary = vocabulary_of(texts)
        if len(vocabulary) > MAX_VOCABULARY:
            raise too_many(where, len(vocabulary))
    feature = Feature(
        name, entry.kind, entry.owner, source, vocabulary, entry.hash_size, length, required=entry.required
    )
    return _with_missing(feature, feature.encode(column))


def _category(name: str, owner: Owner, column: pa.ChunkedArray) -> Feature:
    """What is found may be left out of any request, so "unknown" always has a vector of its own."""
    place = Feature(name, "category", owner, name).place
    return Feature(name, "category", owner, name, vocabulary_of(texts_of(whole(column), place)), has_missing=True)


def _measured(
    name: str, kind: Kind, owner: Owner, source: str, column: pa.Array, scale: Scale, required: bool
) -> Feature:
    """Columns without a negative value that reach far (over 5 times their median) enter by their logarithm."""
    place = Feature(name, kind, owner, source).place
    values = measures_of(column, kind, place)
    logs, means, spreads = [], [], []
    for one in values.T:
        here = one[np.isfinite(one)]
        if scale == "log" and len(here) and here.min() < 0:
            raise InputError(f"{place} has scale = 'log' and the value {here.min():g}", allowed="0 or more")
        far = len(here) > 0 and here.min() >= 0 and here.max() > max(1.0, 5 * float(np.median(here)))
        logarithmic = scale == "log" or (scale == "auto" and bool(far))
        here = np.log1p(here) if logarithmic else here
        plain = scale == "none" or not len(here)
        spread = 1.0 if plain else float(here.std())
        logs.append(logarithmic)
        means.append(0.0 if plain else float(here.mean()))
        spreads.append(spread if spread > 1e-6 else 1.0)
    feature = Feature(
        name, kind, owner, source, log=tuple(logs), mean=tuple(means), spread=tuple(spreads), required=required
    )
    return _with_missing(feature, feature.encode(column))


def _says_anything(feature: Feature, column: pa.ChunkedArray | pa.Array) -> bool:
    return bool(feature.width) and bool(np.isfinite(feature.encode(column)).any())


def _with_missing(feature: Feature, values: np.ndarray) -> Feature:
    """Knowing whether training meets rows that lack it."""
    missing = values == 0 if feature.kind in COUNTED else np.isnan(values)
    missing = missing.all(axis=1) if missing.ndim == 2 else missing
    return feature if not missing.any() else replace(feature, has_missing=True)
