"""Content columns in the forms that catalogues of the world have, made plain: text, or lists of text.

``categories``, ``genres`` and ``tags`` come as ``"Action|Comedy"``, as literals inside text (``"['a', 'b']"``, JSON),
as lists of paths (``[["Toys", "Puzzles"], ["Gifts"]]``, Amazon 2014) or of objects (``[{"id": 1, "name": "Drama"}]``).
They become one list of distinct texts, in order: the first path's first entry stays the first, which is the category
that models read. Of an object its name counts.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LISTS = ("categories", "genres", "tags")
CONTENT = (*LISTS, "title", "brand", "creator", "description", "text")
NAME_FIELDS = ("name", "title", "label", "value", "text")  # of an object, in the order in which they are tried
MAX_LITERAL = 100_000  # letters of a literal inside text
MAX_DEPTH = 64


def plain_content(items: pa.Table) -> pa.Table:
    """The items with every content column as text or as a list of text (or of numbers)."""
    for position, name in enumerate(items.column_names):
        if name not in CONTENT:
            continue
        column = items[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if _is_nested(column.type):
            column = _flattened(column.to_pylist())
        elif name in LISTS and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            column = _split(column)
        items = items.set_column(position, name, column)
    return items


def storable(table: pa.Table) -> pa.Table:
    """The table as Parquet gives it back: what is saved must be what was measured (a second becomes a millisecond)."""
    for position, field in enumerate(table.schema):
        if not _is_plain(field.type):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({field.name: table[field.name]}), sink)
            with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as file:
                table = table.set_column(position, field.name, file.read()[field.name])
    return table


def texts_of(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts inside a nested value, depth first."""
    if depth > MAX_DEPTH or value is None:
        return
    if isinstance(value, dict):
        named = next((value[name] for name in NAME_FIELDS if isinstance(value.get(name), str)), None)
        if named is None:
            named = next((entry for entry in value.values() if isinstance(entry, str)), None)
        yield from [named] if named is not None else texts_of(list(value.values()), depth + 1)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from texts_of(entry, depth + 1)
    elif str(value).strip():
        yield str(value).strip()


def _is_nested(kind: pa.DataType) -> bool:
    """More than a list of plain values."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        return pa.types.is_nested(inner) or pa.types.is_fixed_size_list(kind) or pa.types.is_dictionary(inner)
    return pa.types.is_nested(kind)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type) and not pa.types.is_nested(kind.value_type)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_null(kind)
    )  # fmt: skip


def _flattened(values: list[Any]) -> pa.Array:
    return pa.array(
        [None if value is None else list(dict.fromkeys(texts_of(value))) for value in values],
        type=pa.list_(pa.string()),
    )


def _split(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Text as lists where some of it is written as one; else the text as it is."""
    written = pc.match_substring_regex(column, r"^\s*\[.*\]\s*$|\|")
    if not pc.any(written).as_py():
        return column
    pieces: list[list[str] | None] = []
    for text in column.to_pylist():
        if text is None:
            pieces.append(None)
            continue
        parts = _literal(text)
        if parts is None:
            parts = text.split("|")
        pieces.append(list(dict.fromkeys(texts_of(parts))))
    return pa.array(pieces, type=pa.list_(pa.string()))


def _literal(text: str) -> list[Any] | None:
    """``"['a', 'b']"``, ``'["a"]'`` and ``"[a, b]"`` as a list; None for other text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if len(text) <= MAX_LITERAL and text.count("[") + text.count("{") + text.count("(") <= MAX_DEPTH:
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, list):
                return value
    return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
