"""JSON as a stream of tables: one object a line, one array of objects, or lines that are Python literals.

Objects are read by Python's own parser, not by Arrow's: that one ends the process at deep nesting, refuses a column
whose kind changes, and takes text that looks like a date for one. Whole blocks of lines are parsed at once; a block
that fails is read line by line, so that a bad line is named and costs nothing but itself.
"""

from __future__ import annotations

import ast
import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sidera.core import InputError
from sidera.data.intake.bad_rows import BadRows
from sidera.data.intake.delimited import MAX_COLUMNS
from sidera.data.intake.text import MAX_LINE, TextFile

ROWS = 20_000  # of a block
MAX_DEPTH = 64  # levels of nesting
ENOUGH = 1 << 19  # letters that are read ahead, so that most objects are whole at the first try
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}()]")


def read_json(text: TextFile, bad: BadRows) -> Iterator[tuple[pa.Table, int]]:
    """-> (a block of rows; the number of its first row's line, 0 where lines are not rows)."""
    start = text.head.lstrip()
    if start.startswith("[") or _runs_over_lines(start):
        objects = _array_objects(text)
        while rows := list(itertools.islice(objects, ROWS)):
            yield _table(rows, text), 0
        return
    for rows, first_line in _line_objects(text, bad):
        yield _table(rows, text), first_line


def _runs_over_lines(start: str) -> bool:
    """Is the first object written over several lines?"""
    line = start.split("\n", 1)[0].strip()
    return "\n" in start.strip() and line.startswith("{") and not line.endswith("}")


def _line_objects(text: TextFile, bad: BadRows) -> Iterator[tuple[list[dict[str, Any]], int]]:
    number = 1  # of the line that comes next
    for lines in _blocks_of_lines(text):
        try:
            if any(line.count("{") + line.count("[") > MAX_DEPTH for line in lines):
                raise ValueError
            rows = json.loads(f"[{','.join(lines)}]")
            whole = len(rows) == len(lines) and all(type(row) is dict for row in rows)
        except (ValueError, RecursionError):
            whole = False
        if whole:
            yield rows, number
        else:
            rows, skipped = [], False
            for position, line in enumerate(lines):
                row = _object(line, f"line {number + position}", text.source.name, bad) if line.strip() else None
                skipped |= row is None
                if row is not None:
                    rows.append(row)
            if rows:
                yield rows, 0 if skipped else number
        number += len(lines)


def _blocks_of_lines(text: TextFile) -> Iterator[list[str]]:
    rest = b""
    for block in text.blocks():
        content = rest + block
        cut = content.rfind(b"\n") + 1
        rest, content = content[cut:], content[:cut]
        if content:
            lines = content.decode("utf-8").split("\n")[:-1]
            for start in range(0, len(lines), ROWS):
                yield lines[start : start + ROWS]
    if rest.strip():
        yield [rest.decode("utf-8")]


def _object(line: str, where: str, file: str, bad: BadRows) -> dict[str, Any] | None:
    problem = "is no JSON object"
    check_depth(line, f"{where} of {file}")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = _literal(line)
    if isinstance(row, dict):
        return row
    bad.add_line(file, where, problem)
    return None


def _literal(line: str) -> Any:
    """A Python literal ({'asin': ...}, as Amazon's and Steam's files are written), or None."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def check_depth(text: str, where: str) -> None:
    """InputError when brackets nest deeper than :data:`MAX_DEPTH`: parsers and Arrow go down once a level."""
    if text.count("{") + text.count("[") + text.count("(") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket.group() in "[{(" else -1
        if depth > MAX_DEPTH:
            raise _too_deep(where)


def _too_deep(where: str) -> InputError:
    allowed = f"{MAX_DEPTH} levels; one flat object an event, with values or lists of them"
    return InputError(f"{where} nests deeper than {MAX_DEPTH} levels", allowed=allowed)


def _array_objects(text: TextFile) -> Iterator[dict[str, Any]]:
    """The objects of an array, or of objects written one after the other over several lines."""
    decoder, letters = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    blocks, path = text.blocks(), text.source.path
    buffer, position, number, ended = "", 0, 0, False
    while True:
        position = _after(buffer, position, " \t\r\n,[]")
        if not ended and len(buffer) - position < ENOUGH:
            block = next(blocks, b"")
            ended = not block
            buffer, position = buffer[position:] + letters.decode(block, final=ended), 0
            continue
        if position >= len(buffer):
            return
        where = f"object {number + 1} of {path}"
        try:
            row, end = decoder.raw_decode(buffer, position)
        except RecursionError:
            raise _too_deep(where) from None
        except json.JSONDecodeError as error:
            if not ended and len(buffer) - position <= MAX_LINE:
                block = next(blocks, b"")
                ended = not block
                buffer, position = buffer[position:] + letters.decode(block, final=ended), 0
                continue
            raise InputError(
                f"cannot read {path}: object {number + 1} is no JSON ({error.msg})",
                allowed="one object a line, or an array of objects",
            ) from None
        check_depth(buffer[position:end], where)
        if not isinstance(row, dict):
            raise InputError(
                f"{path} holds a {type(row).__name__} as entry {number + 1}",
                allowed="one object a line, or an array of objects",
            )
        number, position = number + 1, end
        yield row


def _after(text: str, position: int, skipped: str) -> int:
    while position < len(text) and text[position] in skipped:
        position += 1
    return position


def _table(rows: list[dict[str, Any]], text: TextFile) -> pa.Table:
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"{text.source.path} has {len(names):,} columns", allowed=f"up to {MAX_COLUMNS:,} names in all objects"
        )
    return pa.table({str(name): _array([row.get(name) for row in rows], str(name), text) for name in names})


def _array(values: list[Any], name: str, text: TextFile) -> pa.Array:
    """Values of one kind as they are, lists as lists; what is mixed or nested otherwise becomes text."""
    kinds = {type(value) for value in values} - {type(None)}
    try:
        if kinds <= {str} or kinds <= {bool} or kinds <= {int} or kinds <= {float}:
            return pa.array(values, type=None if kinds - {str} else pa.string())
        if kinds <= {int, float}:
            return pa.array(values, type=pa.float64())
        if kinds <= {list}:
            return pa.array(values)
    except UnicodeEncodeError:
        raise _surrogate(values, name, text) from None
    except (pa.ArrowException, OverflowError):
        pass
    try:
        return pa.array([_as_text(value) for value in values], type=pa.string())
    except UnicodeEncodeError:
        raise _surrogate(values, name, text) from None


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _surrogate(values: list[Any], name: str, text: TextFile) -> InputError:
    for value in values:
        try:
            (_as_text(value) or "").encode()
        except UnicodeEncodeError:
            return InputError(
                f"{text.source.path} has half a character in column {name!r}: {ascii(value)[:60]}",
                allowed="text; a lone surrogate is none",
                fix="write the file again from its source",
            )
    return InputError(f"{text.source.path} has half a character in column {name!r}", allowed="text")
