"""Items that come, change and go while they are served.

    delta = Delta(upserts=(ItemChange("cup-7", "Blue cup", {"brand": "X"}),), removed=("cup-3",))
    catalog, changes, body = applied(catalog, delta)       # another Catalog: all of it, or InputError and nothing

An item that the catalogue does not hold is added, on a code that is free: near the vector that is given, or near the
items that are described alike (``catalog.newcomers``). One that it holds gets the new title and fields, and keeps its
code. One that was removed comes back under its old code. A removal is a tombstone: it also counts for an item that is
gone or was never there, so that a message can come twice. Whatever a message changes, the catalogue moves on by one
``items_version``.

What was decided once (vectors) is kept in the log, so that a replay gives the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidera.catalog.catalog import Catalog
from sidera.catalog.newcomers import TextNeighbours, newcomer_vectors
from sidera.core import InputError
from sidera.engine.items_log import ITEMS, ItemsLog
from sidera.engine.versions import folder_of, read_version


@dataclass(frozen=True)
class ItemChange:
    """What is said of one item; None: nothing of it."""

    item: str
    title: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # column of the items table -> value, or list of values
    vector: Sequence[float] | None = None  # of a new item, in the space of the catalogue's encoder


@dataclass(frozen=True)
class Delta:
    """One message: all of it is applied, or nothing."""

    upserts: tuple[ItemChange, ...] = ()
    removed: tuple[str, ...] = ()
    version: int | None = None  # the publisher's number; None: the next one

    def content(self) -> dict[str, Any]:
        """What the publisher said, for comparison."""
        return {"upserts": [_plain(one) for one in self.upserts], "removed": list(self.removed)}


@dataclass(frozen=True)
class Changes:
    """What a message did, by item key."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()  # to be removed, and not there

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.restored or self.removed)

    def counts(self) -> dict[str, int]:
        return {name: len(keys) for name, keys in asdict(self).items()}


def applied(
    catalog: Catalog, delta: Delta, texts: TextNeighbours | None = None
) -> tuple[Catalog, Changes, dict[str, Any]]:
    """The next Catalog, what was done, and the message with the vectors that were found, for the log.

    ``texts``: an index of the catalogue's titles, which takes in the new ones; None: made where it is needed.
    """
    changes, new = _sorted_out(catalog, delta)
    vectors, body = None, delta.content()
    before = catalog
    if changes.removed:
        catalog = catalog.without(changes.removed)
    if changes.restored:
        catalog = catalog.restored(changes.restored)
    if new:
        table = _table([one.fields for one in new])
        vectors = _vectors(before, new, table, texts)
        catalog = catalog.with_items([one.item for one in new], vectors, [one.title for one in new], table)
    said = [one for one in delta.upserts if one.item in {*changes.changed, *changes.restored}]
    said = [one for one in said if one.title is not None or one.fields]
    for columns in {tuple(sorted(one.fields)) for one in said}:  # items that say the same columns
        some = [one for one in said if tuple(sorted(one.fields)) == columns]
        titles = {one.item: one.title for one in some if one.title is not None}
        catalog = catalog.described([one.item for one in some], titles, _table([one.fields for one in some]))
    if not changes:
        return before, changes, body
    if np.asarray(catalog.removed).all():
        raise InputError("the message removes the last items", fix="add items before, or stop serving")
    body["codebook_id"] = catalog.codebook_id
    if vectors is not None:
        body["vectors"] = {one.item: row for one, row in zip(new, np.asarray(vectors).tolist(), strict=True)}
    if texts is not None:
        texts.extend([one.title for one in new])
    return catalog.at_version(before.items_version + 1), changes, body


def replayed(catalog: Catalog, log: ItemsLog, after: int = 0) -> tuple[Catalog, int]:
    """The catalogue with every message behind record ``after``; and the newest record."""
    last, texts = after, None
    for record in log.after(after):
        last = record.number
        if record.kind == ITEMS:
            delta = delta_of(record.body, catalog)
            if texts is None and any(one.vector is None for one in delta.upserts):
                texts = TextNeighbours(catalog.titles.tolist())
            catalog = applied(catalog, delta, texts)[0]
    return catalog, last


def catalog_now(run: str | Path, number: int) -> tuple[Catalog, int]:
    """The catalogue of a version with every change of items since; and the newest record of the log."""
    run = Path(run)
    catalog = Catalog.load(folder_of(run, number) / "catalog")
    log = ItemsLog.of_run(run, must_exist=True)
    try:
        catalog, last = replayed(catalog, log, read_version(run, number).items_messages)
        return catalog.at_version(max(catalog.items_version, log.items_version())), last
    finally:
        log.close()


def delta_of(body: Mapping[str, Any], catalog: Catalog) -> Delta:
    """The message of a record, for this catalogue: vectors are those of the log where they are of its codebook."""
    known = body.get("vectors", {}) if body.get("codebook_id") == catalog.codebook_id else {}
    upserts = []
    for one in body["upserts"]:
        key = one["item"]
        is_new = bool(catalog.find_ids([key])[0] < 0)
        upserts.append(ItemChange(key, one["title"], one["fields"], known.get(key) if is_new else None))
    return Delta(tuple(upserts), tuple(body["removed"]))


def _sorted_out(catalog: Catalog, delta: Delta) -> tuple[Changes, list[ItemChange]]:
    """What each part of the message is to this catalogue; InputError for one that contradicts itself."""
    keys = [one.item for one in delta.upserts]
    named = [*keys, *delta.removed]
    if len(set(named)) < len(named):
        twice = next(key for place, key in enumerate(named) if key in named[:place])
        raise InputError(f"item {twice!r} is named twice", fix="name every item of a message once")
    ids = catalog.find_ids(named)
    gone = np.zeros(len(named), dtype=bool)
    gone[ids >= 0] = catalog.removed[ids[ids >= 0]]
    new, sorted_keys = [], {name: list[str]() for name in ("changed", "restored", "removed", "absent")}
    for one, item, was_removed in zip(delta.upserts, ids.tolist(), gone.tolist(), strict=False):
        if item < 0:
            new.append(one)
            continue
        if one.vector is not None:
            raise InputError(
                f"item {one.item!r} is in the catalogue and keeps its code; the message gives it a vector",
                fix="leave the vector out, or remove the item and add it under another key",
            )
        if was_removed:
            sorted_keys["restored"].append(one.item)
        elif _says_something_new(catalog, one, item):
            sorted_keys["changed"].append(one.item)
    for key, item, was_removed in zip(
        delta.removed, ids[len(keys) :].tolist(), gone[len(keys) :].tolist(), strict=True
    ):
        sorted_keys["absent" if item < 0 or was_removed else "removed"].append(key)
    found = {name: tuple(values) for name, values in sorted_keys.items()}
    return Changes(added=tuple(one.item for one in new), **found), new


def _says_something_new(catalog: Catalog, one: ItemChange, item: int) -> bool:
    if one.title is not None and catalog.titles[item] != one.title:
        return True
    categories = catalog.schema.item_categories(_table([one.fields])) if one.fields else {}
    return any(
        name in one.fields and int(catalog.categories[name][item]) != int(values[0])
        for name, values in categories.items()
    )


def _vectors(catalog: Catalog, new: Sequence[ItemChange], table: pa.Table, texts: TextNeighbours | None) -> Any:
    """(n, D), given or found; None where the catalogue has no codes."""
    if catalog.quantizer is None:
        return None
    width = catalog.quantizer.dim
    for one in new:
        if one.vector is not None and len(one.vector) != width:
            raise InputError(f"the vector of item {one.item!r} has {len(one.vector)} numbers", allowed=str(width))
    without = [row for row, one in enumerate(new) if one.vector is None]
    found = np.zeros((len(new), width), np.float32)
    if without:
        if texts is None:
            texts = TextNeighbours(catalog.titles.tolist())
        categories = {name: rows[without] for name, rows in catalog.schema.item_categories(table).items()}
        found[without] = newcomer_vectors(catalog, [_words(new[row]) for row in without], texts, categories)
    for row, one in enumerate(new):
        if one.vector is not None:
            found[row] = one.vector
    return found


def _words(one: ItemChange) -> str:
    """Everything that is said of an item in words."""
    values = [one.title, *one.fields.values()]
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return " ".join(part for part in flat if isinstance(part, str))


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row per item with every column that one of them says; InputError for a column of mixed kinds."""
    columns = dict.fromkeys(name for row in rows for name in row)
    made = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, list | tuple) for value in values):
            values = [
                None if value is None else list(value) if isinstance(value, list | tuple) else [value]
                for value in values
            ]
        try:
            made[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"field {name!r} of the items: {error}", allowed="texts, numbers, or lists of one kind"
            ) from None
    return pa.table(made) if made else pa.table({"": pa.nulls(len(rows))})


def _plain(one: ItemChange) -> dict[str, Any]:
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in one.fields.items()}
    return {**asdict(replace(one, fields={}, vector=None)), "fields": fields,
            "vector": None if one.vector is None else [float(value) for value in one.vector]}  # fmt: skip
