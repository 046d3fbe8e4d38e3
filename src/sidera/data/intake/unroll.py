"""Events inside a row become rows: a session with its events inside (OTTO), a user with lists (NVTabular, TFRecord).

* A list of objects, where no column of the row itself is an item: each object is an event, with the other columns of
  its row repeated; the object's own fields win over columns of the same name.
* An item column that is a list: it and all lists as long as it in every row are taken apart side by side; lists of
  another length describe the row and are left out, by name.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.intake.columns import ITEM_NAMES, squeeze


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def unrolled(table: pa.Table, item: str | None, file: str) -> tuple[pa.Table, str]:
    """-> (one event a row, what was done in words or ""). ``item``: the column that a flag names, None if none does."""
    lists = [field.name for field in table.schema if is_list(field.type)]
    if not lists:
        return table, ""
    inside = [name for name in lists if pa.types.is_struct(table.schema.field(name).type.value_type)]
    flat = [name for name in table.column_names if name not in lists]
    known = [item] if item else [name for name in table.column_names if squeeze(name) in ITEM_NAMES]
    if not any(name in flat for name in known) and len(inside) == 1 and not any(name in lists for name in known):
        return _objects(table, inside[0], lists), f"the objects in {inside[0]!r} are the events"
    if any(name in flat for name in known) or not any(name in lists for name in known):
        return table, ""
    items = next(name for name in known if name in lists)
    return _lists(table, items, lists, file)


def _objects(table: pa.Table, name: str, lists: list[str]) -> pa.Table:
    parents, values = _flat(table[name])
    columns = {other: _take(table[other], parents) for other in table.column_names if other not in lists}
    for position, field in enumerate(values.type):
        columns[field.name] = pc.struct_field(values, [position])
    return pa.table(columns)


def _lists(table: pa.Table, items: str, lists: list[str], file: str) -> tuple[pa.Table, str]:
    lengths = pc.fill_null(pc.list_value_length(table[items]), 0)
    parents, _ = _flat(table[items])
    columns, others = {}, []
    for name in table.column_names:
        if name not in lists:
            columns[name] = _take(table[name], parents)
        elif pc.all(pc.equal(pc.fill_null(pc.list_value_length(table[name]), 0), lengths)).as_py() is not False:
            columns[name] = _flat(table[name])[1]
        else:
            others.append(name)
    time = [name for name in others if squeeze(name) in ("time", "timestamp", "timestamps", "times", "ts")]
    if time:
        raise InputError(
            f"{file}: the lists {items!r} and {time[0]!r} of a row differ in length", allowed="one time for every item"
        )
    left = f"; lists of another length are left out: {', '.join(others)}" if others else ""
    return pa.table(columns), f"the entries of {items!r} are the events{left}"


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """-> (the row of each entry, the entries)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return pc.list_parent_indices(array), pc.list_flatten(array)


def _take(column: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    return column.take(rows)
