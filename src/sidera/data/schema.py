"""Schema: what raw tables must look like, and how they become a Dataset.

Events: ``user``, ``item`` and ``time`` (unix seconds, or the unit that is said; timestamps, dates and ISO text are
understood), optionally ``position`` (the published order inside a user); every other numeric column is feedback.
``watch_time`` and ``duration`` are seconds from 0 up, NaN where they are not known; no feedback is endless.
Items: ``key``, optionally ``title``, ``brand``, ``categories`` (list or text), ``description``, ``text``.
Users: ``key``. Both tables keep every other column they have.

Order inside a user: time, then ``position``, then the order of the input rows. Without ``time``, ``position`` is the
order and becomes the time (``time_kind = "order"``). Dense item ids follow the items table; items that only events name
come after it, sorted by key. Dense user ids follow the first appearance of a user in the log.

Trap: dates have day resolution in the Amazon sets, so most neighbours tie: only ``position`` knows which came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.dataset import Dataset, TimeKind, keys_of, positions_of
from sidera.data.intake.keys import check_length, dictionary_kind, empty_keys, is_text, text_keys
from sidera.data.intake.times import NOTHING, parse_iso
from sidera.data.nested import plain_content, storable

TIME_UNITS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
SECONDS = ("watch_time", "duration")  # feedback in seconds
LAST_SECOND = 1e11  # year 5138: what is larger was not meant as seconds
TEXT_FIELDS = ("title", "brand", "categories", "description")


def build_dataset(
    name: str,
    events: pa.Table,
    items: pa.Table | None = None,
    users: pa.Table | None = None,
    *,
    time_unit: str = "s",
    strict_items: bool = False,
    text_fields: Sequence[str] = (),
) -> Dataset:
    """Validate raw tables and sort them into a Dataset; ``notes`` of the result says what was mended or left out.

    ``strict_items`` refuses events whose item is not in the items table, instead of adding it without content.
    ``text_fields`` are the item columns that make up ``text``; empty: the ``text`` column if there is one, else
    title, brand, categories and description, those that exist.
    """
    if time_unit not in TIME_UNITS:
        raise InputError(f"time unit {time_unit!r} is not known", allowed=", ".join(TIME_UNITS))
    if not events.num_rows:
        raise InputError(f"log {name!r} is empty", allowed="at least one event", fix="check the path and the columns")
    events = _string_keys(events, ("user", "item"), "events")
    time, time_kind = _order_values(events, time_unit)
    position = _numbers(events, "position") if "position" in events.column_names else None

    user_keys, user_ids = _first_appearance(events["user"])
    named, item_rows = _first_appearance(events["item"])
    items, num_added = _complete_items(items, named, strict_items)
    item_ids = positions_of(pa.chunked_array([named]), items["key"])[item_rows]
    del item_rows
    users, num_idle = _align_users(users, user_keys)

    order = _order(user_ids, time, position)
    moved = int(((np.diff(order) < 0) & (np.diff(user_ids[order]) == 0)).sum())
    seconds = _whole_seconds(time, TIME_UNITS[time_unit]) if time_kind == "seconds" else time
    feedback, dropped = _feedback(events, order)
    notes: dict[str, Any] = {
        "events_out_of_order": moved,
        "items_without_content": num_added,
        "users_without_events": num_idle,
        "columns_dropped": dropped,
    }
    return Dataset(
        name=name,
        item_keys=keys_of(items["key"]),
        user_keys=keys_of(users["key"]),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(user_ids, minlength=len(user_keys)))]).astype(np.int64),
        item_ids=item_ids[order],
        times=seconds[order].astype(np.int64, copy=False),
        feedback=feedback,
        items=storable(with_text(items, text_fields)),
        users=storable(users),
        time_kind=time_kind,
        notes={key: value for key, value in notes.items() if value},
    )


def _order(user_ids: np.ndarray, time: np.ndarray, position: np.ndarray | None) -> np.ndarray:
    """(E,) rows by user, time, position; ties keep the order of the input rows."""
    if position is None and time.dtype.kind == "i" and len(time):
        low, high = int(time.min()), int(time.max())
        width = high - low + 1
        if (int(user_ids.max()) + 1) * width < 2**63:  # one key instead of two: half the time
            key = user_ids * np.int64(width)
            key += time
            key -= low
            if (key[1:] >= key[:-1]).all():
                return np.arange(len(key))
            return np.argsort(key, kind="stable")
    return np.lexsort((time, user_ids) if position is None else (position, time, user_ids))


def _whole_seconds(time: np.ndarray, per_second: int) -> np.ndarray:
    if time.dtype.kind == "i":
        return time if per_second == 1 else time // per_second
    return np.floor(time / per_second)


def with_text(items: pa.Table, fields: Sequence[str] = ()) -> pa.Table:
    """The items with a ``text`` column (null where nothing is known): what a text encoder reads."""
    if not fields:
        if "text" in items.column_names:
            return items
        fields = [field for field in TEXT_FIELDS if field in items.column_names]
    for field in fields:
        if field not in items.column_names:
            raise InputError(f"text field {field!r} is not in the items table", allowed=", ".join(items.column_names))
    texts = [_sentence(fields, values) for values in zip(*(items[f].to_pylist() for f in fields), strict=True)]
    column = pa.array(texts or [None] * items.num_rows, type=pa.string())
    if "text" in items.column_names:
        return items.set_column(items.column_names.index("text"), "text", column)
    return items.append_column("text", column)


def _sentence(fields: Sequence[str], values: Sequence[Any]) -> str | None:
    """``OPI Nail Lacquer. Brand: OPI. Categories: Makeup, Nails``: titles and free text bare, the rest named."""
    parts = []
    for field, value in zip(fields, values, strict=True):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value if value is not None else "")
        text = text.strip().rstrip(".")
        if text:
            parts.append(text if field in ("title", "text", "description") else f"{field.capitalize()}: {text}")
    return ". ".join(parts) or None


def _string_keys(table: pa.Table, names: Sequence[str], what: str) -> pa.Table:
    """The table with its key columns as dictionaries of text; a key must be there, not empty, not a fraction."""
    for name in names:
        if name not in table.column_names:
            raise InputError(
                f"{what} have no column {name!r} (found: {', '.join(table.column_names)})",
                fix=f"say which column it is (--{name} COLUMN)",
            )
        column = table[name]
        text = pa.chunked_array(
            [_dictionary(text_keys(chunk, name, what)) for chunk in column.chunks], dictionary_kind()
        )
        if text.num_chunks > 1:
            text = text.unify_dictionaries()
        row = 0
        for chunk in text.chunks:
            missing = empty_keys(chunk)
            if missing.any():
                row += int(np.argmax(missing))
                raise InputError(f"{what} row {row} has no {name}", fix="fill the value or leave the row out")
            row += len(chunk)
        if text.num_chunks:
            check_length(text.chunk(text.num_chunks - 1).dictionary, name, what)
        table = table.set_column(table.column_names.index(name), name, text)
    return table


def _dictionary(keys: pa.Array) -> pa.Array:
    return keys if pa.types.is_dictionary(keys.type) else keys.dictionary_encode()


def _order_values(events: pa.Table, time_unit: str) -> tuple[np.ndarray, TimeKind]:
    """(E,) what orders a user's events: the times in their own unit, or the published position."""
    if "time" not in events.column_names:
        if "position" not in events.column_names:
            raise InputError(
                f"events have no column 'time' (found: {', '.join(events.column_names)})",
                fix="say which column it is (--time COLUMN), which holds the order (--position COLUMN), or that the "
                "rows stand in order (--order rows)",
            )
        return _numbers(events, "position"), "order"
    time = _numbers(events, "time", TIME_UNITS[time_unit])
    largest = time.max() / TIME_UNITS[time_unit]
    if largest > LAST_SECOND:
        better = next((unit for unit, scale in TIME_UNITS.items() if time.max() / scale <= LAST_SECOND), "")
        fix = f"pass --time-unit {better}" if better else "give unix seconds"
        raise InputError(
            f"time {int(time.max())} is not in unix seconds (row {int(time.argmax())})",
            allowed=f"0..{LAST_SECOND:.0f} s",
            fix=f"{fix}, or divide the times by {TIME_UNITS[better]}" if better else fix,
        )
    return time, "seconds"


def _numbers(events: pa.Table, name: str, per_second: int = 1) -> np.ndarray:
    """An ordering column as numbers >= 0; timestamps and dates become unix time in the unit asked for."""
    column = events[name]
    if pa.types.is_temporal(column.type) and not pa.types.is_time(column.type):
        column = pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64())
        scale = TIME_UNITS["us"]
        column = (
            pc.divide(column, scale // per_second) if per_second <= scale else pc.multiply(column, per_second // scale)
        )
    elif is_text(column.type):
        column = _parse_numbers(column, name, per_second)
    elif pa.types.is_null(column.type):  # a column without a single value: the message below names its first row
        column = column.cast(pa.int64())
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"column {name!r} of events holds {column.type}", allowed="numbers, dates or timestamps")
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InputError(
            f"events row {row} has no {name} ({column.null_count} rows lack it)", fix="fill it or leave the rows out"
        )
    values = column.to_numpy()
    for bad_mask, problem in ((~np.isfinite(values), "not a finite number"), (values < 0, "negative")):
        if bad_mask.any():
            row = int(np.argmax(bad_mask))
            raise InputError(f"{name} {values[row]} of events row {row} is {problem}", allowed="numbers from 0 up")
    return values


def _parse_numbers(column: pa.ChunkedArray, name: str, per_second: int) -> pa.ChunkedArray:
    try:
        return column.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        pass
    if column.null_count:
        return column  # the caller names the first row
    micros = np.concatenate([parse_iso(chunk) for chunk in column.chunks]) if name == "time" else np.array([NOTHING])
    if (micros == NOTHING).any():
        example = next(value for value in column.to_pylist() if not _is_number(value))
        raise InputError(
            f"{name} {example!r} is neither a number nor an ISO date",
            allowed="unix seconds, milliseconds (--time-unit ms) or dates like 2014-03-01",
        )
    scaled = micros * (per_second // 10**6) if per_second > 10**6 else micros // (10**6 // per_second)
    return pa.chunked_array([pa.array(scaled)])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_appearance(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Distinct keys in the order in which the log names them, and the row (int64) of each event's key among them."""
    last = column.chunk(column.num_chunks - 1)  # the chunks of a unified column share their dictionary
    rows = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    used = pc.unique(pa.array(rows))  # keeps the order of appearance
    places = np.full(len(last.dictionary), -1, dtype=np.int64)
    places[used.to_numpy()] = np.arange(len(used))
    return last.dictionary.take(used), places[rows]


def _complete_items(items: pa.Table | None, named: pa.Array, strict: bool) -> tuple[pa.Table, int]:
    """The items table, ``key`` first, with the items that only the log names added below, without content."""
    if items is None:
        items = pa.table({"key": pa.array([], type=pa.string())})
        strict = False
        given = False
    else:
        given = True
        items = plain_content(_unique_keys(items, "items"))
    missing = named.filter(pc.invert(pc.is_in(named, value_set=items["key"].combine_chunks())))
    missing = missing.take(pc.sort_indices(missing))
    if len(missing) and strict:
        raise InputError(
            f"{len(missing)} items of the log are not in the items table, the first is {missing[0].as_py()!r}",
            fix="add them to the items table, or import without --strict (they get no content)",
        )
    items = pa.concat_tables([items, pa.table({"key": missing})], promote_options="default").combine_chunks()
    return items, len(missing) if given else 0


def _align_users(users: pa.Table | None, user_keys: pa.Array) -> tuple[pa.Table, int]:
    """One row per user of the log, in its order; users that did nothing are counted and left out."""
    keys = pa.table({"key": user_keys})
    if users is None:
        return keys, 0
    users = _unique_keys(users, "users")
    rows = positions_of(pa.chunked_array([user_keys]), users["key"])
    index = pa.array(rows, mask=rows < 0)
    columns = {name: users[name].take(index) for name in users.column_names if name != "key"}
    return pa.table({"key": user_keys, **columns}).combine_chunks(), users.num_rows - int((rows >= 0).sum())


def _unique_keys(table: pa.Table, what: str) -> pa.Table:
    table = _string_keys(table, ("key",), what)
    table = table.set_column(table.column_names.index("key"), "key", table["key"].cast(pa.string()))
    counts = pc.value_counts(table["key"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example = repeated[0].as_py()
        raise InputError(
            f"{what} table names {len(repeated)} keys more than once, {example['values']!r} {example['counts']} times",
            allowed="one row per key",
            fix="keep one row of each",
        )
    return table.select(["key", *(name for name in table.column_names if name != "key")])


def _feedback(events: pa.Table, order: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    """Numeric columns beside the named ones, sorted like the events (nulls become NaN), and the names of the others."""
    feedback, dropped = {}, []
    for name in events.column_names:
        kind = events[name].type
        if pa.types.is_decimal(kind):
            numbers = events[name].cast(pa.float64(), safe=False)
            events = events.set_column(events.column_names.index(name), name, numbers)
            kind = pa.float64()
        if name in ("user", "item", "time", "position"):
            continue
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            values = events[name]
            if values.null_count:
                values = pc.fill_null(values.cast(pa.float64(), safe=False), float("nan"))
            feedback[name] = _judged(name, values.to_numpy())[order]
        else:
            dropped.append(name)
    return feedback, dropped


def _judged(name: str, values: np.ndarray) -> np.ndarray:
    """Feedback as it is; InputError when it is endless, or seconds are negative: training would fail far from here."""
    if values.dtype == bool:
        return values
    bad = [(np.isinf(values), "endless")] if values.dtype.kind == "f" else []
    if name in SECONDS:
        bad.append((values < 0, "negative"))
    for bad_mask, problem in bad:
        if bad_mask.any():
            row = int(np.argmax(bad_mask))
            raise InputError(
                f"{name} {values[row]} of events row {row} is {problem}",
                allowed="seconds from 0 up, or nothing" if name in SECONDS else "numbers, or nothing",
            )
    return values
