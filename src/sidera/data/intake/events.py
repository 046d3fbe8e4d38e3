"""Blocks of a log's rows become one table of events: every value is judged here, at the door.

Keys are held as numbers into a dictionary from the first block on, times and numbers as numbers, so that ten million
rows of text never stand in memory together. A row without a user, an item or a time, with a value that is no number
where one is read, or with seconds that are negative or endless is left out and counted (:class:`BadRows`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.data.features import BOOKKEEPING
from sidera.data.intake.bad_rows import SHOWN, BadRows
from sidera.data.intake.columns import Choice
from sidera.data.intake.keys import check_length, decoded, dictionary_kind, empty_keys, is_text, text_keys
from sidera.data.intake.numbers import missing_rows, numbers_of
from sidera.data.intake.parquet import is_bytes
from sidera.data.intake.times import TimeColumn

SECONDS = ("watch_time", "duration")  # seconds: from 0 up, or not known
NUMBERS = ("rating", "position", *SECONDS)  # read as numbers whatever they are written as
MAX_KINDS = 32  # of events; a column with more values is no kind of event
NO_MARKS = ("rating", "position", *BOOKKEEPING)  # whatever numbers they hold


@dataclass
class Left:
    """A column that is left out, and why."""

    reason: str
    example: str = ""


@dataclass
class EventBlocks:
    """Collects blocks; the columns of ``choice`` are read, the rest is named."""

    choice: Choice
    bad: BadRows
    time: TimeColumn
    blocks: list[dict[str, pa.Array]] = field(default_factory=list)
    left: dict[str, Left] = field(default_factory=dict)  # column of the file -> why it is left out
    num_rows: int = 0  # read, bad ones too

    def add(self, table: pa.Table, where: Callable[[int], str]) -> None:
        """Take a block of rows in. ``where(row)`` names a row of the block for people."""
        sources = self.choice.sources
        good = np.ones(table.num_rows, dtype=bool)
        columns: dict[str, pa.Array] = {}

        def judge(fine: np.ndarray, reason: str, name: str, show: bool = False) -> None:
            nonlocal good
            rows = np.flatnonzero(~fine & good)
            if len(rows):
                column = _one(table[sources.get(name, name)])
                examples = [
                    f"{where(int(row))} has {reason}{f' ({column[int(row)].as_py()!r})' if show else ''}"
                    for row in rows[:SHOWN]
                ]
                self.bad.add(examples, reason, len(rows))
                good &= fine

        for name in ("user", "item"):
            keys = text_keys(_one(table[sources[name]]), name, self.bad.what)
            if not pa.types.is_dictionary(keys.type):
                keys = keys.dictionary_encode()
            judge(~empty_keys(keys), f"no {name}", name)
            check_length(keys.dictionary, name, f"the {self.bad.what}")
            columns[name] = keys
        if "time" in sources:
            column = _one(table[sources["time"]])
            judge(~missing_rows(column), "no time", "time")
            judge(self.time.add(column), "no readable time", "time", show=True)
            columns["time"] = pa.nulls(0)  # the TimeColumn holds it; its rows are dropped in ``finish``
        for name in NUMBERS:
            if name in sources or name in self.choice.kept:
                column = _one(table[sources.get(name) or self.choice.kept[name]])
                self._number(name, column, columns, judge)
        for name, source in self.choice.kept.items():
            if name not in NUMBERS and source in table.column_names:
                self._other(name, source, _one(table[source]), columns, judge)
        if "event" in sources:
            columns["event"] = self._kinds(_one(table[sources["event"]]))
        columns["good"] = pa.array(good)
        self.num_rows += table.num_rows
        self.blocks.append(columns)

    def finish(self, max_bad: float) -> tuple[pa.Table, str, str]:
        """-> (events with ``user``, ``item``, ``time`` (int64) and the rest, unit of time, what the times are).

        The unit is "us", "order", or "" where the log has no time.
        """
        self.bad.check(self.num_rows, max_bad)
        good = np.concatenate([block.pop("good").to_numpy(zero_copy_only=False) for block in self.blocks])
        everything = bool(good.all())
        columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        for name in ("user", "item", "event"):
            if name in self.blocks[0]:
                whole = pa.chunked_array([block.pop(name) for block in self.blocks], dictionary_kind())
                columns[name] = one_dictionary(whole)
        unit, said = "", ""
        if "time" in self.choice.sources:
            for block in self.blocks:
                block.pop("time")
            values, unit, said = self.time.finish()
            columns["time"] = pa.array(values)
        for name in list(dict.fromkeys(name for block in self.blocks for name in block)):
            if all(name in block for block in self.blocks):
                columns[name] = _joined([block.pop(name) for block in self.blocks])
        self.blocks.clear()
        table = pa.table(columns)
        return (table if everything else table.filter(pa.array(good))), unit, said

    def _number(self, name: str, column: pa.Array, columns: dict[str, pa.Array], judge: Callable[..., None]) -> None:
        values, readable = numbers_of(column)
        sources = {**self.choice.kept, **self.choice.sources}
        if not readable.any() and name not in self.choice.mapped and not missing_rows(column).all():
            self.left[sources[name]] = Left("no number", _example(column))
            return
        judge(readable | missing_rows(column), f"no number as {name}", sources[name], show=True)
        if values.dtype.kind == "f":
            judge(~np.isinf(values), f"an endless {name}", sources[name])
        if name in SECONDS or name == "position":
            judge(~(values < 0), f"a negative {name}", sources[name], show=True)
        if name == "position":
            judge(readable, "no position", sources[name])
        columns[name] = pa.array(values)

    def _other(
        self, name: str, source: str, column: pa.Array, columns: dict[str, pa.Array], judge: Callable[..., None]
    ) -> None:
        if source in self.left:
            return
        kind = column.type
        if pa.types.is_boolean(kind):
            columns[name] = column
            return
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if not (number or is_text(kind) or is_bytes_dictionary(kind) or pa.types.is_null(kind)):
            self.left[source] = Left(f"{kind}, no number")
            return
        values, readable = numbers_of(column)
        if not readable.all() and not (readable | missing_rows(column)).all():
            marks = _as_marks(column)
            if marks is not None:
                columns[name] = marks
            else:
                self.left[source] = Left("text", _example(column))
            return
        if values.dtype.kind == "f":
            judge(~np.isinf(values), f"an endless {name}", source)
        columns[name] = pa.array(values)

    def _kinds(self, column: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if is_bytes(column.type) and not is_text(column.type):
            column = decoded(column, "event", self.bad.what)
        return pc.fill_null(column.cast(pa.string()), "").dictionary_encode()


def is_bytes_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and is_bytes(kind.value_type)


def as_marks(events: pa.Table) -> pa.Table:
    """Whole-number columns of 0 and 1 alone are what logs call a mark (clicked or not): they become true and false."""
    for position, name in enumerate(events.column_names):
        column = events[name]
        if name in ("user", "item", "time", *NO_MARKS) or not pa.types.is_integer(column.type) or column.null_count:
            continue
        ends = pc.min_max(column).as_py()
        if (ends["min"], ends["max"]) == (0, 1):
            events = events.set_column(position, name, column.cast(pa.bool_()))
    return events


def one_dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A chunked dictionary column in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0)
    whole = column.unify_dictionaries()
    if not whole.num_chunks:
        return pa.array([], dictionary_kind())
    indices = pa.concat_arrays([chunk.indices for chunk in whole.chunks])
    return pa.DictionaryArray.from_arrays(indices, whole.chunk(0).dictionary)


def _one(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _as_marks(column: pa.Array) -> pa.Array | None:
    """Texts that all say true or false, as marks; else None."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not is_text(column.type):
        return None
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    if pc.all(pc.fill_null(pc.is_in(text, value_set=pa.array(["true", "false"], type=text.type)), False)).as_py():
        return pc.equal(text, "true")
    return None


def _joined(parts: list[pa.Array]) -> pa.ChunkedArray:
    kinds = {part.type for part in parts}
    if len(kinds) > 1:  # whole numbers in one block, fractions or gaps in another; true beside 1
        parts = [
            (part.cast(pa.int64()) if pa.types.is_boolean(part.type) else part).cast(pa.float64()) for part in parts
        ]
    return pa.chunked_array(parts)


def _example(column: pa.Array) -> str:
    for value in column.slice(0, 1000).to_pylist():
        if value not in (None, ""):
            return str(value)[:40]
    return ""
