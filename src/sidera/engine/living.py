"""Items that come, change and go while they are served.

    delta = Delta(upserts=(ItemChange("cup-7", "Blue cup", {"brand": "X"}),), removed=("cup-3",))
    catalog, changes, body = applied(catalog, delta)       # another Catalog: all of it, or InputError and nothing

An item that the catalogue does not hold is added, on a code that is free: near the vector that is given, or near the
items that are described alike (``catalog.newcomers``). One that it holds gets the new title and fields, and keeps its
code. One that was removed comes back under its old code. A removal is a tombstone: it also counts for an item that is
gone or was never there, so that a message can come twice. Whatever a message changes, the catalogue moves on by one
``items_version``.

What was decided once (codes) is kept in the log, so that a replay gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidera.catalog.catalog import Catalog
from sidera.catalog.newcomers import TextNeighbours, newcomer_places
from sidera.config import digest
from sidera.core import InputError
from sidera.engine.items_log import ITEMS, ItemsLog, Record
from sidera.engine.versions import current_number, folder_of, read_version


@dataclass(frozen=True)
class ItemChange:
    """What is said of one item; None: nothing of it."""

    item: str
    title: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # column of the items table -> value, or list of values
    vector: Sequence[float] | None = None  # of a new item, in the space of the catalogue's encoder
    codes: Sequence[int] | None = None  # of a new item, that it got when its message came


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


@dataclass(frozen=True)
class Applied:
    """What became of a message."""

    version: int  # the publisher's number
    new: bool  # False: it was applied before
    items_version: int
    changes: Changes
    placed_by: Mapping[str, str] = field(default_factory=dict)  # added item -> what gave it its code


def recorded(
    log: ItemsLog, now: Catalog, delta: Delta, index: Callable[[Catalog], TextNeighbours] | None = None
) -> tuple[Applied, Catalog, int]:
    """Apply a message to the catalogue ``now`` and write it down, inside ``log.writing()``: what became of it, the next
    Catalog, and the record's place. A message that was applied already changes nothing. ``index``: of a catalogue's
    titles, which takes in the new ones."""
    content = delta.content()
    version = log.last_message() + 1 if delta.version is None else delta.version
    if delta.version is not None and log.is_known(version, content):
        return Applied(version, False, now.items_version, Changes()), now, log.last()
    catalog, changes, body = applied(now, delta, index(now) if index else None)
    _check_places(delta, placed_by := body.get("placed_by", {}))
    place = log.append(ITEMS, version, catalog.items_version, body, digest(content))
    return Applied(version, True, catalog.items_version, changes, placed_by), catalog, place


def change_run(run: str | Path, delta: Delta, absent_ok: bool = True) -> Applied:
    """Apply one message to a run folder that nobody, or another process, serves; servers with ``--watch`` follow.

    InputError, and nothing is written, for an item to be removed that is not there unless ``absent_ok``.
    """
    with closing(ItemsLog.of_run(Path(run))) as log, log.writing():
        catalog, _ = catalog_now(run, current_number(run), log)
        done = recorded(log, catalog, delta)[0]
        if done.changes.absent and not absent_ok:
            count, of = len(done.changes.absent), len(delta.removed)
            raise InputError(
                f"the catalogue holds no item {done.changes.absent[0]!r} ({count} of {of} are not there)",
                fix="leave them out, or add --absent-ok; nothing was removed",
            )
        return done


def applied(
    catalog: Catalog, delta: Delta, texts: TextNeighbours | None = None
) -> tuple[Catalog, Changes, dict[str, Any]]:
    """The next Catalog, what was done, and the message with the vectors and codes that were found, for the log.

    ``texts``: an index of the catalogue's titles, which takes in the new ones; None: made where it is needed.
    """
    changes, new = _sorted_out(catalog, delta)
    body, before = delta.content(), catalog
    if changes.removed:
        catalog = catalog.without(changes.removed)
    if changes.restored:
        catalog = catalog.restored(changes.restored)
    taken = _taken(catalog, [tuple(one.codes) for one in new if one.codes is not None])
    coded = [one for one in new if one.codes is not None and tuple(one.codes) not in taken]
    others = [one for one in new if one.codes is None or tuple(one.codes) in taken]
    new = [*coded, *others]  # codes that were given go first, others are found then
    for some, has_codes in ((coded, True), (others, False)):
        if not some:
            continue
        table = _table([one.fields for one in some])
        keys, titles = [one.item for one in some], [one.title for one in some]
        if has_codes:
            codes = np.array([one.codes for one in some], np.int32).reshape(len(some), catalog.num_levels)
            catalog = catalog.with_items(keys, None, titles, table, codes)
        else:
            vectors, by = _vectors(before, some, table, texts)
            catalog = catalog.with_items(keys, vectors, titles, table)
            if vectors is not None:
                body["placed_by"] = dict(zip(keys, by, strict=True))
    said = [one for one in delta.upserts if one.item in {*changes.changed, *changes.restored}]
    said = [one for one in said if one.title is not None or one.fields]
    for columns in {tuple(sorted(one.fields)) for one in said}:  # items that say the same columns
        some = [one for one in said if tuple(sorted(one.fields)) == columns]
        named = {one.item: one.title for one in some if one.title is not None}
        catalog = catalog.described([one.item for one in some], named, _table([one.fields for one in some]))
    if not changes:
        return before, changes, body
    if catalog.removed.sum() == catalog.num_items:
        raise InputError("the message removes the last items", fix="add items before, or stop serving")
    body["codebook_id"] = catalog.codebook_id
    if new:
        rows = catalog.codes[np.arange(before.num_items, catalog.num_items)].tolist()
        body["codes"] = {one.item: row for one, row in zip(new, rows, strict=True)}
    if texts is not None:
        texts.extend([one.title for one in new])
    return catalog.at_version(before.items_version + 1), changes, body


def _taken(catalog: Catalog, wanted: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Which of these codes an item has, also a removed one: versions that grew apart may give one code twice."""
    if not wanted or not catalog.has_codes or catalog.collision == "share":
        return set()
    codes, asked = np.asarray(catalog.codes), np.array(wanted)
    near = np.ones(len(codes), dtype=bool)
    for level in range(codes.shape[1]):
        near &= np.isin(codes[:, level], asked[:, level])
    return {*map(tuple, codes[near].tolist())} & {*wanted}


def replayed(catalog: Catalog, records: Sequence[Record], texts: TextNeighbours | None = None) -> Catalog:
    """The catalogue after every message of these records, as if they had come one by one. ``texts``: an index of its
    titles, which takes in the new ones; None: made where it is needed.

    They are applied as two messages: first everything that was ever said, in the order in which items came, so that
    each gets the code that it got then; then what is removed in the end. A field may hold texts in one message and
    numbers in the next: then the first is several. Its ``items_version`` is that of the last.
    """
    said: dict[str, ItemChange] = {}
    gone: dict[str, bool] = {}
    for record in records:
        if record.kind != ITEMS:
            continue
        known = record.body.get("codes", {}) if record.body.get("codebook_id") == catalog.codebook_id else {}
        for one in record.body["upserts"]:
            key = one["item"]
            before = said.get(key, ItemChange(key, vector=one["vector"], codes=known.get(key)))
            title = before.title if one["title"] is None else one["title"]
            said[key] = replace(before, title=title, fields={**before.fields, **one["fields"]})
            gone[key] = False
        gone |= dict.fromkeys(record.body["removed"], True)
    found = catalog.find_ids(list(said))
    # A message may be older than what the recipe declares: what a new item does not say is unknown then.
    unsaid = {feature.source: None for feature in catalog.schema.owned("item") if feature.required}
    upserts = [
        replace(one, vector=None, codes=None) if item >= 0 else replace(one, fields={**unsaid, **one.fields})
        for one, item in zip(said.values(), found.tolist(), strict=True)
    ]
    width = None if catalog.quantizer is None else catalog.quantizer.dim
    upserts = [one if one.vector is None or len(one.vector) == width else replace(one, vector=None) for one in upserts]
    if texts is None and any(one.codes is None for one in upserts):
        texts = TextNeighbours(catalog.titles.tolist())
    version = catalog.items_version
    for some in _alike(upserts):
        catalog = applied(catalog, Delta(tuple(some)), texts)[0]
    if any(gone.values()):
        catalog = applied(catalog, Delta(removed=tuple(key for key, is_gone in gone.items() if is_gone)))[0]
    return catalog.at_version(max([version, *(record.items_version for record in records)]))


def catalog_now(run: str | Path, number: int, log: ItemsLog | None = None) -> tuple[Catalog, int]:
    """The catalogue of a version with every change of items since; and the newest record of the log."""
    run = Path(run)
    catalog = Catalog.load(folder_of(run, number) / "catalog")
    opened = log or ItemsLog.of_run(run, must_exist=True)
    try:
        records = opened.after(read_version(run, number).items_messages)
        catalog = replayed(catalog, records)
        newest = records[-1].number if records else opened.last()
        return catalog.at_version(max(catalog.items_version, opened.items_version())), newest
    finally:
        if log is None:
            opened.close()


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
    features = catalog.schema.said_of_items(_table([one.fields])) if one.fields else {}
    return any(
        not np.array_equal(catalog.features[name][item], values[0], equal_nan=values.dtype.kind == "f")
        for name, values in features.items()
    )


def _check_places(delta: Delta, placed_by: Mapping[str, str]) -> None:
    """InputError for a new item of which nothing is said: in the middle of all items, its code would be a wrong one."""
    silent = [one.item for one in delta.upserts if placed_by.get(one.item) == "nothing" and not _words(one).strip()]
    if silent:
        raise InputError(
            f"nothing is said of item {silent[0]!r} by which it gets its code ({len(silent)} such items)",
            fix="give it a title, a field that other items have, or its vector; `sidera refresh` also places items by"
            " the events of users",
        )


def _vectors(
    catalog: Catalog, new: Sequence[ItemChange], table: pa.Table, texts: TextNeighbours | None
) -> tuple[Any, list[str]]:
    """(n, D), given or found, and by what; None where the catalogue has no codes."""
    by = ["vector"] * len(new)
    if catalog.quantizer is None:
        return None, by
    width = catalog.quantizer.dim
    for one in new:
        if one.vector is not None and len(one.vector) != width:
            raise InputError(f"the vector of item {one.item!r} has {len(one.vector)} numbers", allowed=str(width))
    without = [row for row, one in enumerate(new) if one.vector is None]
    found = np.zeros((len(new), width), np.float32)
    if without:
        if texts is None:
            texts = TextNeighbours(catalog.titles.tolist())
        categories = {name: rows[without] for name, rows in catalog.schema.categories_of(table).items()}
        placed = newcomer_places(catalog, [_words(new[row]) for row in without], texts, categories)
        found[without] = placed.vectors
        for row, reason in zip(without, placed.by, strict=True):
            by[row] = reason
    for row, one in enumerate(new):
        if one.vector is not None:
            found[row] = one.vector
    return found, by


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
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise InputError(
                f"field {name!r} of the items: {error}", allowed="texts, numbers, or lists of one kind"
            ) from None
    return pa.table(made) if made else pa.table({"": pa.nulls(len(rows))})


def _alike(changes: Sequence[ItemChange]) -> Iterator[Sequence[ItemChange]]:
    """In order, runs in which a field holds values of one kind: as one table they say what each says alone."""
    begin, kinds = 0, dict[str, Any]()
    for place, one in enumerate(changes):
        mine = {name: kind for name, value in one.fields.items() if (kind := _kind(value)) is not None}
        if any(kinds.get(name, kind) != kind for name, kind in mine.items()):
            yield changes[begin:place]
            begin, kinds = place, {}
        kinds |= mine
    if changes:
        yield changes[begin:]


def _kind(value: Any) -> Any:
    """Of a field's value; None: it says nothing."""
    if isinstance(value, list | tuple):
        return frozenset(type(part) for part in value if part is not None)
    return None if value is None else type(value)


def _plain(one: ItemChange) -> dict[str, Any]:
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in one.fields.items()}
    vector = None if one.vector is None else [float(value) for value in one.vector]
    return {"item": one.item, "title": one.title, "fields": fields, "vector": vector}
