"""Delimited text (CSV, TSV, "::" and others) as a stream of tables whose columns are all text.

Delimiter and header are found in the first lines or said by flags. Columns stay text here: what a column holds is
decided by the whole column and never by its first block, and a key "0012" keeps its zeros.

Lines that do not have as many fields as the first are set aside with their number; ``reading.BadRows`` counts them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from sidera.core import InputError
from sidera.data.intake.bad_rows import BadRows
from sidera.data.intake.options import LEFT_OUT
from sidera.data.intake.quotes import Quoting, judge_quotes
from sidera.data.intake.text import TextFile

BLOCK = 8 << 20  # bytes parsed at once
MAX_COLUMNS = 10_000
DELIMITERS = ("\t", "::", ",", ";", "|")  # in the order in which they are tried
STAND_IN = "\x1f"  # for delimiters of several characters
SAMPLE_LINES = 50


@dataclass(frozen=True)
class Dialect:
    """How a delimited file is written."""

    delimiter: str
    names: tuple[str, ...]  # of the columns
    header: bool  # the first line holds them
    quoted: bool
    over_lines: bool  # quoted values may hold line ends
    said: tuple[str, ...] = ()


def find_dialect(
    text: TextFile,
    delimiter: str = "",
    header: bool = True,
    column_names: Sequence[str] = (),
    known: Collection[str] = (),
) -> Dialect:
    """``known``: column names that speak for a delimiter that shows them, squeezed as ``columns.squeeze`` does."""
    path = text.source.path
    lines = [line.rstrip("\r") for line in re.split(r"\r\n|\n|\r", text.head)][:SAMPLE_LINES]
    lines = [line for line in lines if line] or [""]
    chosen = delimiter or _find_delimiter(lines, text.source.path.suffixes, known)
    said = []
    if not delimiter and chosen != ",":
        said.append(f"delimiter {chosen!r} (found)")
    if lines[0].count(chosen) >= MAX_COLUMNS:
        raise InputError(
            f"{path} has over {MAX_COLUMNS:,} columns",
            allowed=f"up to {MAX_COLUMNS:,}",
            fix="check --delimiter, or write the events as rows",
        )
    quoting = _quoting(text, chosen)
    if text.quotes and not quoting.holds:
        said.append(f"quotation marks are letters: line {quoting.broken_line} has one that nothing closes")
    if len(chosen) > 1 and text.quotes and quoting.holds:
        raise InputError(f"{path} has quoted values between {chosen!r}", fix="use a delimiter of one character")
    first = _fields(lines[0], chosen, quoting.holds)
    names = tuple(name.strip() for name in first)
    if column_names:
        names = tuple(name if name not in LEFT_OUT else "" for name in column_names)
        if len(names) != len(first):
            raise InputError(
                f"--columns names {len(names)} columns, {path} has {len(first)} (first line: {_short(lines[0])})",
                fix="name all of them in order, '_' for one that is left out",
            )
        header = header and bool({*map(str.lower, first)} & {name.lower() for name in names if name})
    elif not header or (_squeezed(names).isdisjoint(known) and _no_header(names, lines, chosen, quoting.holds)):
        raise InputError(
            f"{path} has no header that names its columns (first line: {_short(lines[0])})",
            fix=f"name them in order, '_' for one that is left out: --columns {_proposal(len(first))}",
        )
    else:
        _check_names(path.name, names)
    return Dialect(chosen, names, header, quoting.holds and text.quotes > 0, quoting.over_lines, tuple(said))


def read_delimited(text: TextFile, dialect: Dialect, bad: BadRows) -> Iterator[tuple[pa.Table, int]]:
    """-> (a block of rows, all columns text; the number of its first row's line, 0 where lines are not rows)."""
    path, skipped = text.source.path, 0
    used = [name for name in dialect.names if name]
    hidden = [name or f"\0{position}" for position, name in enumerate(dialect.names)]

    def set_aside(row: Any) -> str:
        nonlocal skipped
        skipped += 1
        where = f"line {row.number}" if row.number else "a line"
        bad.add_line(path.name, where, f"has {row.actual_columns} fields, not {row.expected_columns}")
        return "skip"

    many = len(dialect.delimiter) > 1
    stream: Any = _Replacing(text, dialect.delimiter) if many else text.open()
    try:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(
                use_threads=False,
                block_size=max(BLOCK, 2 * text.longest_line + 1024),
                column_names=hidden,
                skip_rows=int(dialect.header),
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=STAND_IN if many else dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.over_lines,
                invalid_row_handler=set_aside,
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=used,
                column_types=dict.fromkeys(hidden, pa.string()),
                strings_can_be_null=False,
            ),
        )
        row = 1 + int(dialect.header)
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch]), 0 if dialect.over_lines or skipped else row
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if "Empty CSV" in reason:
            return
        raise InputError(f"cannot read {path}: {reason}", fix="check --delimiter and --encoding") from None
    finally:
        stream.close()


def _quoting(text: TextFile, delimiter: str) -> Quoting:
    if not text.quotes:
        return Quoting(True, False, True)
    if len(delimiter) > 1:
        return Quoting(False, False, True, 0)
    quoting = judge_quotes(text.blocks(), delimiter)
    if quoting.holds and quoting.over_lines and quoting.lines_even and delimiter in text.head:
        # both readings are whole, and quoting would make one row of several lines: lines are rows
        return Quoting(False, False, True, quoting.broken_line)
    if not quoting.holds and not quoting.lines_even:
        raise InputError(
            f"line {quoting.broken_line} of {text.source.path} opens a quotation mark that nothing closes",
            allowed='quoted values that end with a mark, and marks inside them doubled ("")',
            fix="close or double the mark in that line",
        )
    return quoting


def _squeezed(names: Sequence[str]) -> set[str]:
    return {re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0]) for name in names}


def _find_delimiter(lines: Sequence[str], suffixes: Sequence[str], known: Collection[str]) -> str:
    best, best_rank = "", (-1.0, -1, -1)
    for position, candidate in enumerate(DELIMITERS):
        if candidate not in lines[0]:
            continue
        counts = [len(_fields(line, candidate, len(candidate) == 1)) for line in lines]
        even = sum(count == counts[0] for count in counts) / len(counts)
        fields = _fields(lines[0], candidate, len(candidate) == 1)
        rank = (float(even >= 0.8), len(_squeezed(fields) & set(known)), -position)
        if rank > best_rank:
            best, best_rank = candidate, rank
    if not best:
        return "\t" if any(suffix.lower() == ".tsv" for suffix in suffixes) else ","
    return best


def _fields(line: str, delimiter: str, quoted: bool) -> list[str]:
    if len(delimiter) > 1 or not quoted:
        return line.split(delimiter)
    csv.field_size_limit(1 << 26)
    return next(csv.reader(io.StringIO(line), delimiter=delimiter), [""])


def _no_header(names: Sequence[str], lines: Sequence[str], delimiter: str, quoted: bool) -> bool:
    """The first line holds values: a number or a date stands in it where the second line has one too."""
    if len(lines) < 2:
        return any(_is_value(name) for name in names)
    second = _fields(lines[1], delimiter, quoted)
    both = zip(names, second, strict=False)
    return any(_is_value(name) and _is_value(value) for name, value in both)


def _is_value(text: str) -> bool:
    return bool(re.fullmatch(r"\s*(-?\d+([.,]\d+)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*|\d\d?/\d\d?/\d{4}.*)\s*", text))


def _check_names(file: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            what = f"the column {name!r}" if name else "a column without a name"
            positions = ", ".join(str(position + 1) for position, other in enumerate(names) if other == name)
            raise InputError(
                f"{file} has {what} more than once (columns {positions})",
                fix="rename one of them in the header" if name else "name them in the header",
            )


def _proposal(number: int) -> str:
    return (
        ",".join(("user", "item", "rating", "time", *["_"] * number)[:number])
        if number > 3
        else ("user,item,time" if number == 3 else "user,item")
    )


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")


class _Replacing(io.RawIOBase):
    """The text with a delimiter of several characters replaced by :data:`STAND_IN`."""

    def __init__(self, text: TextFile, delimiter: str) -> None:
        self.blocks, self.delimiter, self.path = text.blocks(), delimiter.encode(), text.source.path
        self.rest, self.ready = b"", b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self.ready:
            block = next(self.blocks, b"")
            if STAND_IN.encode() in block:
                raise OSError(
                    f"it holds the control character 0x{ord(STAND_IN):02x} beside {self.delimiter.decode()!r}"
                )
            content = self.rest + block
            cut = len(content) if not block else content.rfind(b"\n") + 1
            self.rest, content = content[cut:], content[:cut]
            self.ready = content.replace(self.delimiter, STAND_IN.encode())
            if not block and not self.ready:
                return b""
        part, self.ready = (self.ready, b"") if size < 0 else (self.ready[:size], self.ready[size:])
        return part
