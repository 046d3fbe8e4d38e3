"""A data folder that grows: the events of new files behind those that it holds, with their items and users.

    sidera import tuesday.csv --append data/shop
    sidera import exported --append data/shop            # a folder that `sidera export-events` wrote

An event is held already when user, item and second are: a file that comes again, or overlaps with one that came before,
adds nothing. Where one file names such a triple twice, both are events, and both are held afterwards. Users and items
keep their numbers, new ones stand behind them, so that a Catalog made from the folder still fits it.

Columns of events stay what they are. A column that is missing or new is an error: half a column would be read as a
fact. What an export cannot know (a rating that no model reads) is unknown in its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.artifacts import MANIFEST, read_manifest
from sidera.core import InputError
from sidera.data.dataset import Dataset, keys_of, positions_of
from sidera.data.features import BOOKKEEPING, LONG_VIEW

REQUEST = "request"  # numbers of requests; those of two logs are different ones
SLOT = "slot"  # of the exposure that an event answers; -1: of none


@dataclass(frozen=True)
class Appended:
    """What an append did. ``changed`` events are held with other feedback, and stay as they were."""

    events: int
    held: int  # events that the folder had already
    changed: int
    late: int  # new events older than the newest of the folder
    items: int
    items_described: int  # items of the folder whose row says more or other things now
    users: int
    first: int | None  # seconds of the new events
    last: int | None
    left_out: tuple[str, ...] = ()  # bookkeeping columns that the folder never had

    def __bool__(self) -> bool:
        return bool(self.events or self.items or self.items_described or self.users)

    def lines(self) -> list[str]:
        held = f"; {self.held:,} were held already" if self.held else ""
        changed = f", {self.changed:,} of them with other feedback, which stays" if self.changed else ""
        return [
            f"new: {self.events:,} events ({self.late:,} late), {self.users:,} users, {self.items:,} items"
            f"{held}{changed}",
            *([f"items with other descriptions: {self.items_described:,}"] if self.items_described else []),
            *([f"left out, the folder never had it: {', '.join(self.left_out)}"] if self.left_out else []),
        ]


def append_log(folder: str | Path, new: Dataset, *, lacks: Sequence[str] = (), exported: bool = False) -> Appended:
    """Put the events of ``new`` into the data folder; nothing is written where nothing is new.

    ``lacks`` names columns of the folder that ``new`` does not have: its rows hold NaN, false, or a request of their
    own there. A slot that one of the two does not have is -1 there, and need not be named. ``exported``: every number
    may be lacking. InputError, with the folder as it was, when columns differ.
    """
    old = Dataset.load(folder)
    grown, done = appended(old, new, lacks=lacks, exported=exported)
    if done:
        history = [*_record(folder).get("appended", []), asdict(done)]
        grown.save(folder, {**_record(folder), "appended": history})
    return done


def is_export(path: str | Path) -> bool:
    """Whether the folder is a data set that `sidera export-events` wrote."""
    return (Path(path) / MANIFEST).is_file() and "exported" in read_manifest(path, "dataset").info


def appended(
    old: Dataset, new: Dataset, *, lacks: Sequence[str] = (), exported: bool = False
) -> tuple[Dataset, Appended]:
    """Both logs as one. InputError for an order without times, and for columns that are not those of ``old``."""
    for one in (old, new):
        if one.time_kind != "seconds":
            problem = f"data set {one.name!r} has an order and no times: nothing can be put behind it"
            raise InputError(problem, fix="import the whole log again")
    stated = old.feedback.keys() & new.feedback.keys()
    old, new = _with_slots(old, new, exported)
    columns, left_out = _feedback(old, new, lacks, exported)
    items, described = _merged(old.items, new.items, "items")
    users, _ = _merged(old.users, new.users, "users")
    whose = positions_of(pa.chunked_array([pa.array(new.user_keys, pa.string())]), users["key"])[new.event_users]
    which = positions_of(pa.chunked_array([pa.array(new.item_keys, pa.string())]), items["key"])[new.item_ids]
    partner = _partners((old.event_users, old.item_ids, old.times), (whose, which, new.times))
    new_mask = partner < 0
    changed = np.zeros(new.num_events, dtype=bool)
    for name, values in columns.items():
        if name != REQUEST and name in stated:
            before, after = old.feedback[name][partner[~new_mask]], values[~new_mask]
            changed[~new_mask] |= (before != after) & ~((before != before) & (after != after))
    times = new.times[new_mask]
    done = Appended(
        events=int(new_mask.sum()), held=int((~new_mask).sum()), changed=int(changed.sum()),
        late=int((times < old.times.max()).sum()) if old.num_events else 0, items=items.num_rows - old.num_items,
        items_described=described, users=users.num_rows - old.num_users,
        first=int(times.min()) if len(times) else None, last=int(times.max()) if len(times) else None,
        left_out=left_out,
    )  # fmt: skip
    owners = np.concatenate([old.event_users, whose[new_mask]])
    moments = np.concatenate([old.times, times])
    order = np.lexsort((moments, owners))  # stable: ties stand behind what was there
    feedback = {n: np.concatenate([_old(old, n, v), v[new_mask]])[order] for n, v in columns.items()}
    counts = np.bincount(owners, minlength=users.num_rows)
    return replace(
        old, item_keys=keys_of(items["key"]), user_keys=keys_of(users["key"]), items=items, users=users,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item_ids=np.concatenate([old.item_ids, which[new_mask]])[order], times=moments[order], feedback=feedback,
        source="",
    ), done  # fmt: skip


def _with_slots(old: Dataset, new: Dataset, exported: bool) -> tuple[Dataset, Dataset]:
    """Both with slots where one has them: -1, no exposure was answered, in the other. So a folder that knew none gets
    them with the first export, and a refresh can tell which events answer the model's own lists."""
    if SLOT in old.feedback and SLOT not in new.feedback:
        return old, _slotless(new, old.feedback[SLOT].dtype)
    if exported and SLOT in new.feedback and SLOT not in old.feedback:
        return _slotless(old, new.feedback[SLOT].dtype), new
    return old, new


def _slotless(dataset: Dataset, dtype: np.dtype) -> Dataset:
    return replace(dataset, feedback={**dataset.feedback, SLOT: np.full(dataset.num_events, -1, dtype)})


def _record(folder: str | Path) -> dict[str, Any]:
    """What the folder's manifest says beside names and counts."""
    info = read_manifest(folder, "dataset").info
    return {name: value for name, value in info.items() if name in ("import", "appended")}


def _partners(
    old: tuple[np.ndarray, np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """(n,) int64: for each new event the old one of its (user, item, second), each old one once; -1 where none is left.

    Both are sorted by the three, equal ones by their order; the j-th of a triple meets the j-th.
    """
    num_old = len(old[0])
    both = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
    is_new = np.arange(len(both[0])) >= num_old
    order = np.lexsort((is_new, *both[::-1]))
    user, item, second = (values[order] for values in both)
    first = np.ones(len(order), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(first)
    group = np.cumsum(first) - 1
    olds = np.bincount(group, weights=~is_new[order], minlength=len(starts)).astype(np.int64)  # of each triple
    turn = np.arange(len(order)) - starts[group] - olds[group]  # of a new event among those of its triple
    has = is_new[order] & (turn < olds[group])
    partner = np.full(len(new[0]), -1, dtype=np.int64)
    partner[order[has] - num_old] = order[starts[group[has]] + turn[has]]
    return partner


def _feedback(
    old: Dataset, new: Dataset, lacks: Sequence[str], exported: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """column of ``old`` -> (n,) of the new events; and the names of columns that are left out."""
    theirs = dict(new.feedback)
    if LONG_VIEW not in old.feedback and {"watch_time", "duration"} <= old.feedback.keys():
        theirs.pop(LONG_VIEW, None)  # derived from the two, here as in the folder
    left_out = tuple(name for name in theirs if exported and name in BOOKKEEPING and name not in old.feedback)
    more = [name for name in theirs if name not in old.feedback and name not in left_out]
    fewer = [name for name in old.feedback if name not in theirs and name not in lacks]
    fewer = [n for n in fewer if not exported or (old.feedback[n].dtype == bool and n not in BOOKKEEPING)]
    unknown = [name for name in lacks if name not in old.feedback]
    if unknown:
        allowed = ", ".join(old.feedback) or "none: the folder has no feedback"
        raise InputError(f"--lacks {unknown[0]} is no column of {old.name!r}", allowed=allowed)
    if more or fewer:
        parts = [f"{words} {', '.join(names)}" for words, names in (("lack", fewer), ("have also", more)) if names]
        raise InputError(
            f"the columns of the log changed: the new events {' and '.join(parts)}",
            allowed=f"those of {old.name!r}: {', '.join(old.feedback) or 'none'}",
            fix="import the whole log into a new folder"
            + (f", or say that they are unknown: --lacks {','.join(fewer)}" if fewer and not more else ""),
        )
    columns = {name: _column(name, old.feedback[name], theirs.get(name), new.num_events) for name in old.feedback}
    return columns, left_out


def _column(name: str, old: np.ndarray, new: np.ndarray | None, number: int) -> np.ndarray:
    if name == REQUEST:
        behind = int(old.max()) + 1 if len(old) else 0
        numbers = np.arange(number) if new is None else new
        return (numbers + behind).astype(old.dtype)
    if new is None:
        if old.dtype == bool:
            return np.zeros(number, dtype=bool)
        return np.full(number, np.nan, old.dtype if old.dtype.kind == "f" else np.float64)
    if old.dtype.kind == "b" or new.dtype.kind == "b":
        marks = np.array_equal(new, new.astype(bool)) and not (new != new).any()
        if old.dtype != bool or not marks:
            raise InputError(
                f"feedback {name!r} of the new events holds {new.dtype}", allowed=f"{old.dtype}, as in the folder",
                fix="write it as before, or import the whole log into a new folder",
            )  # fmt: skip
        return new.astype(bool)
    if old.dtype.kind == "i" and new.dtype.kind == "f":  # a fraction or an unknown value came
        whole = np.isfinite(new).all() and np.array_equal(new, np.rint(new))
        return new.astype(old.dtype) if whole else new.astype(np.float64)
    return new.astype(old.dtype)


def _old(dataset: Dataset, name: str, new: np.ndarray) -> np.ndarray:
    """The folder's column; whole numbers become fractions where the new events have some or lack them."""
    values = dataset.feedback[name]
    return values.astype(new.dtype) if values.dtype.kind == "i" and new.dtype.kind == "f" else values


def _merged(old: pa.Table, new: pa.Table, what: str) -> tuple[pa.Table, int]:
    """``old`` with new keys behind it, its rows saying what ``new`` says of them; and how many rows changed.

    A value that is not known replaces none. InputError for a column that holds another kind of thing.
    """
    for name in new.column_names:
        if name in old.column_names and not _like(old[name].type, new[name].type):
            raise InputError(
                f"column {name!r} of the new {what} holds {new[name].type}", allowed=f"{old[name].type}, as before",
                fix="write it as before, or import the whole log into a new folder",
            )  # fmt: skip
    rows = positions_of(new["key"], old["key"])
    behind = new.filter(pa.array(rows < 0))
    columns: dict[str, pa.ChunkedArray] = {}
    changed = np.zeros(old.num_rows, dtype=bool)
    place = np.full(old.num_rows, -1, dtype=np.int64)
    place[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    index = pa.array(place, mask=place < 0)
    for name in [*old.column_names, *(name for name in new.column_names if name not in old.column_names)]:
        kind = old[name].type if name in old.column_names else new[name].type
        before = old[name] if name in old.column_names else pa.chunked_array([pa.nulls(old.num_rows, kind)])
        if name not in new.column_names:
            columns[name] = pa.chunked_array([*before.chunks, pa.nulls(behind.num_rows, kind)], kind)
            continue
        said = _cast(new[name], kind).combine_chunks()
        update = said.take(index)
        changed |= _differs(before.combine_chunks(), update)
        kept = _coalesced(before.combine_chunks(), update)
        columns[name] = pa.chunked_array([kept, _cast(behind[name], kind).combine_chunks()], kind)
    return pa.table(columns).combine_chunks(), int(changed.sum())


def _like(old: pa.DataType, new: pa.DataType) -> bool:
    if pa.types.is_null(new) or old.equals(new):
        return True
    families = (TEXTS, (pa.types.is_integer, pa.types.is_floating), LISTS)
    same = any(_is(family, old) and _is(family, new) for family in families)
    return same or (_is(LISTS, old) and _is(TEXTS, new))


TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
LISTS = (pa.types.is_list, pa.types.is_large_list)


def _is(family: Sequence[Callable[[pa.DataType], bool]], kind: pa.DataType) -> bool:
    return any(member(kind) for member in family)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if _is(LISTS, kind) and _is(TEXTS, column.type):  # one category, written without a list
        values = [None if value is None else [value] for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, kind)])
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise InputError(f"a value of the new table is no {kind}: {error}", fix="write it as before") from None


def _differs(before: pa.Array, update: pa.Array) -> np.ndarray:
    """(n,) rows where ``update`` says something, and something else."""
    said = update.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(said)
    mine, theirs = before.take(pa.array(rows)).to_pylist(), update.take(pa.array(rows)).to_pylist()
    said[rows] = [a != b and not (a != a and b != b) for a, b in zip(mine, theirs, strict=True)]
    return said


def _coalesced(before: pa.Array, update: pa.Array) -> pa.Array:
    if pa.types.is_nested(before.type):  # Arrow's coalesce knows no lists
        pairs = zip(before.to_pylist(), update.to_pylist(), strict=True)
        return pa.array([old if new is None else new for old, new in pairs], before.type)
    return pc.coalesce(update, before)
