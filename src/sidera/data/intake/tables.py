"""Whole tables of items or users from files: columns as numbers, marks, lists or text, by all of their values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.intake.bad_rows import BadRows
from sidera.data.intake.columns import ITEM_NAMES, ITEM_ROLES, LOG_ROLES, USER_NAMES
from sidera.data.intake.delimited import Dialect, find_dialect, read_delimited
from sidera.data.intake.json_rows import read_json
from sidera.data.intake.keys import decoded, is_text
from sidera.data.intake.options import ImportMapping
from sidera.data.intake.parquet import decoded_bytes, is_bytes, read_parquet_blocks
from sidera.data.intake.sources import Source
from sidera.data.intake.text import TextFile, survey

KNOWN = frozenset((*USER_NAMES, *ITEM_NAMES, *(name for names in LOG_ROLES.values() for name in names)))
KNOWN |= frozenset((*(name for names in ITEM_ROLES.values() for name in names), "key", "id"))


@dataclass
class Reading:
    """One file on its way in: what was found, for the report, and where its rows stand."""

    source: Source
    said: list[str] = field(default_factory=list)
    lines: bool = False  # rows are named by their line


def read_blocks(
    source: Source, options: ImportMapping, bad: BadRows, reading: Reading, of_log: bool = True
) -> Iterator[tuple[pa.Table, int]]:
    """-> (a block of a file's rows under its own names; the line or row of the first, 0 where lines are not rows)."""
    if source.kind == "parquet":
        yield from _with_given(read_parquet_blocks(source), source)
        return
    text = survey(source, options.encoding)
    if text.said:
        reading.said.append(text.said)
    reading.lines = True
    if source.kind == "csv" and not (source.path.suffix == ".txt" and text.head.lstrip().startswith("{")):
        dialect = dialect_of(text, options if of_log else ImportMapping(encoding=options.encoding))
        reading.said += dialect.said
        yield from _with_given(read_delimited(text, dialect, bad), source)
    else:
        yield from _with_given(read_json(text, bad), source)


def dialect_of(text: TextFile, options: ImportMapping) -> Dialect:
    return find_dialect(text, options.delimiter, options.header, options.column_names, KNOWN)


def _with_given(blocks: Iterator[tuple[pa.Table, int]], source: Source) -> Iterator[tuple[pa.Table, int]]:
    """The columns that folders ``name=value`` give are added."""
    for table, first in blocks:
        for name, value in source.given.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * table.num_rows, type=pa.string()))
        yield table, first


def read_table(
    sources: Sequence[Source], options: ImportMapping, what: str, said: list[str], text_columns: Collection[str]
) -> pa.Table:
    """All rows of some files. ``text_columns`` (names in the file) stay text whatever they hold: keys, titles."""
    bad = BadRows(what)
    parts, rows = [], 0
    for source in sources:
        reading = Reading(source)
        for table, _ in read_blocks(source, options, bad, reading, of_log=False):
            parts.append(_plain_block(table, source, what))
            rows += table.num_rows
        said += [f"{source.name}: {words}" for words in reading.said]
        check_same_columns(
            parts[0].column_names if parts else [], parts[-1].column_names if parts else [], sources, source
        )
    if not rows and not bad.count:
        raise InputError(f"{sources[0].path} is empty", allowed="at least one row")
    bad.check(rows + bad.count, options.max_bad)
    if bad.count:
        said.append(bad.line())
    names = list(dict.fromkeys(name for part in parts for name in part.column_names))
    return pa.table({name: _typed(_column(parts, name), name in text_columns) for name in names})


def check_same_columns(first: list[str], other: list[str], sources: Sequence[Source], source: Source) -> None:
    """InputError when a file has other columns than the first one. Of JSON an object may leave columns out."""
    if source.kind == "jsonl" or set(first) == set(other):
        return
    missing, extra = [name for name in first if name not in other], [name for name in other if name not in first]
    words = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    words += [f"has {', '.join(map(repr, extra))} beside"] if extra else []
    raise InputError(
        f"{source.path.name} has other columns than {sources[0].path.name}: it {' and '.join(words)}",
        fix="give files of one form, or import them one by one",
    )


def _plain_block(table: pa.Table, source: Source, what: str) -> pa.Table:
    """Dictionaries as their values, bytes as text."""
    for position, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            if is_bytes(column.type.value_type) and decoded_bytes(column) > source.budget:
                raise source.swollen(f"{decoded_bytes(column):,} bytes of text in column {name!r}")
            column = column.cast(column.type.value_type)
        if is_bytes(column.type) and not is_text(column.type):
            column = decoded(column, name, f"the {what} {source.name}")
        table = table.set_column(position, name, column)
    return table


def _column(parts: Sequence[pa.Table], name: str) -> pa.ChunkedArray:
    columns = [
        part[name] if name in part.column_names else pa.chunked_array([pa.nulls(part.num_rows)]) for part in parts
    ]
    kinds = {column.type for column in columns if not pa.types.is_null(column.type)}
    if len(kinds) > 1:
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        target = pa.float64() if numbers else pa.string()
        try:
            columns = [column.cast(target) for column in columns]
        except pa.ArrowException:  # lists in one block, text in another
            columns = [pa.chunked_array([pa.array(_texts(column.to_pylist()), type=pa.string())]) for column in columns]
    elif kinds:
        columns = [column.cast(next(iter(kinds))) for column in columns]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])


def _texts(values: list[object]) -> list[str | None]:
    return [None if value is None else value if isinstance(value, str) else str(value) for value in values]


def _typed(column: pa.ChunkedArray, text: bool) -> pa.ChunkedArray:
    """Text that says numbers, or true and false, throughout: as such; empty text is nothing."""
    if text and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        return column.cast(pa.string())
    if not is_text(column.type) or text:
        return column
    filled = pc.if_else(
        pc.is_in(column, value_set=pa.array(["", "NA", "NaN", "nan", "null"], type=column.type)), None, column
    )
    if filled.null_count == len(filled):
        return column
    padded = pc.any(pc.match_substring_regex(filled, r"^0\d")).as_py()  # zip codes: leading zeros are part of the value
    for target in () if padded else (pa.int64(), pa.float64()):
        try:
            return filled.cast(target)
        except pa.ArrowInvalid:
            continue
    lower = pc.utf8_lower(filled)
    if pc.all(pc.is_in(lower.drop_null(), value_set=pa.array(["true", "false"], type=lower.type))).as_py():
        return pc.equal(lower, "true")
    return column
