"""Lines of a raw file, read one after the other: text lines, JSON or Python-literal records, rows of a delimited file.

Memory holds one line (or one block of rows), never the file. A line that cannot be understood is counted with its
number and left out; a file of which more than a stated share is so is refused.

Trap: the Amazon 2014 metadata and the Steam files are Python literals, not JSON. They are read by ``ast.literal_eval``
after a check that the line holds nothing but literals and is nested no deeper than ``MAX_DEPTH``: the parser of Python
itself may crash on lines that are nested deeply.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from sidera.core import InputError
from sidera.data.raw.files import RawFile

MAX_LINE = 1 << 22  # bytes; the longest lines of the published files are far below
BLOCK = 1 << 22  # bytes of a delimited file read at a time
MAX_LITERAL = 1 << 21  # characters of a Python-literal line
MAX_DEPTH = 32
EARLY = 10_000  # lines after which a file of another kind is given up

_ATOM = re.compile(  # a text or a number
    r"""[uU]?'(?:[^'\\]|\\.)*'|[uU]?"(?:[^"\\]|\\.)*"|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?""", re.DOTALL
)
_BARE = re.compile(r"[\s\w{}\[\](),:.+\-]*")
_WORD = re.compile(r"[^\W\d]\w*")
_BRACKET = re.compile(r"[\[\](){}]")
_SIGNS = re.compile(r"[+\-]\s*[+\-]")
WORDS = {"None", "True", "False"}


@dataclass
class Tally:
    """Lines read and lines left out, of one file."""

    label: str
    max_share: float = 0.01
    read: int = 0
    bad: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)  # the first (line number, what is wrong)

    def leave_out(self, number: int, reason: str, count: int = 1) -> None:
        self.bad += count
        if len(self.examples) < 3:
            self.examples.append((number, reason))
        if self.read >= EARLY and self.bad > self.read / 2:
            self.check()

    def leave_out_of_block(self, first: int, good_mask: np.ndarray, reason: str) -> None:
        """The rows of a block whose first line is ``first`` that a mask (n,) does not name."""
        if not good_mask.all():
            self.leave_out(first + int(np.argmin(good_mask)), reason, int((~good_mask).sum()))

    def check(self) -> None:
        """InputError when more lines were left out than the stated share."""
        if self.bad > self.max_share * self.read:
            where = "; ".join(f"line {number}: {reason}" for number, reason in self.examples)
            raise InputError(
                f"{self.label}: {self.bad:,} of {self.read:,} lines cannot be understood ({where})",
                allowed=f"at most {self.max_share:.1%}",
                fix="check that the file is of this format, or allow more with --max-bad SHARE",
            )


def lines(file: RawFile, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); blank lines are skipped, overlong ones left out."""
    with file.open() as stream:
        number = 0
        while line := stream.readline(MAX_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) >= MAX_LINE:
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                tally.read += 1
                tally.leave_out(number, f"longer than {MAX_LINE:,} bytes")
                continue
            line = line.rstrip(b"\r\n")
            if line.strip():
                tally.read += 1
                yield number, line
    tally.check()


def records(
    file: RawFile, tally: Tally, skip: Callable[[bytes], bool] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a file with one JSON object or Python dict a line; lines to ``skip`` are not parsed."""
    for number, line in lines(file, tally):
        if skip is not None and skip(line):
            continue
        try:
            record = parse_record(line.decode())
        except ValueError as error:  # UnicodeDecodeError among them
            tally.leave_out(number, str(error).splitlines()[0][:80])
            continue
        yield number, record


def parse_record(text: str) -> dict[str, Any]:
    """A JSON object, or else a Python dict literal; ValueError where it is neither."""
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        record = parse_literal(text)
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, not a record")
    return record


def parse_literal(text: str) -> Any:
    """The value of a Python literal (dict, list, text, number, None, True, False); ValueError for anything else."""
    if len(text) > MAX_LITERAL:
        raise ValueError(f"longer than {MAX_LITERAL:,} characters")
    bare = _ATOM.sub(" 0 ", text)
    if not _BARE.fullmatch(bare) or not set(_WORD.findall(bare)) <= WORDS or _SIGNS.search(bare):
        raise ValueError("neither JSON nor a Python literal")
    depth = deepest = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"nested {deepest} deep")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None


def rows(
    file: RawFile, tally: Tally, columns: Sequence[str], names: Sequence[str] | None = None, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, pa.StringArray]]]:
    """(line number of its first row, wanted column -> values as text) of each block of a delimited file without quotes.

    ``names``: of all columns where the file has no header. A wanted column that the header lacks is an InputError.
    The blocks are cut here: pyarrow's own streaming reads ahead in a thread, which may outlive the Python stream.
    """
    with file.open() as stream:
        number = 1
        if names is None:
            header = decoded(stream.readline(MAX_LINE)).rstrip("\r\n")
            names, number = [name.strip('"') for name in header.split(delimiter)], 2
            missing = [name for name in columns if name not in names]
            if missing:
                listed = ", ".join(names[:12])[:200]
                raise InputError(f"{file.label} has no column {missing[0]!r} (its first line: {listed})")
        for block in _blocks(stream, file.label):
            data = block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block
            if data.strip():
                yield number, _parse(data, file, tally, number, columns, names, delimiter)
            number += block.count(b"\n")
    if not tally.read:
        raise InputError(f"{file.label} is empty", allowed="at least one row")
    tally.check()


def _blocks(stream: IO[bytes], label: str) -> Iterator[bytes]:
    """Some megabytes at a time, cut at the end of a line."""
    rest = b""
    while block := stream.read(BLOCK):
        data = rest + block
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield data[:cut]
        elif len(rest) > MAX_LINE:
            raise InputError(
                f"{label} has a line longer than {MAX_LINE:,} bytes", fix="check that it is of this format"
            )
    if rest:
        yield rest


def _parse(
    data: bytes,
    file: RawFile,
    tally: Tally,
    first: int,
    needed: Sequence[str],
    names: Sequence[str],
    delimiter: str,
) -> dict[str, pa.StringArray]:
    def invalid(row: pa_csv.InvalidRow) -> str:
        tally.read += 1
        position = first - 1 + (row.number or 1)
        tally.leave_out(position, f"{row.actual_columns} columns in place of {row.expected_columns}")
        return "skip"

    parsing = pa_csv.ParseOptions(
        delimiter=delimiter, quote_char=False, double_quote=False, invalid_row_handler=invalid
    )
    converting = pa_csv.ConvertOptions(
        include_columns=list(needed), column_types=dict.fromkeys(needed, pa.string()), strings_can_be_null=False
    )
    reading = pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1)
    try:
        data.decode()
    except UnicodeDecodeError:
        data = decoded(data).encode()
    try:
        table = pa_csv.read_csv(pa.BufferReader(data), reading, parsing, converting).combine_chunks()
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read {file.label}: {reason}", fix="check that it is of this format") from None
    tally.read += table.num_rows
    empty = pa.array([], type=pa.string())
    return {name: table[name].chunk(0) if table[name].num_chunks else empty for name in needed}


def quoted_rows(file: RawFile, tally: Tally, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a UTF-8 CSV with a header whose values may stand between quotes, one at a time; for tables of content."""
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        reader = csv.DictReader(text)
        try:
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{file.label} has no column {missing[0]!r}", allowed=f"a header: {', '.join(columns)}"
                )
            for row in reader:
                tally.read += 1
                if row[columns[0]] and None not in [row[name] for name in columns]:
                    yield {name: row[name] for name in columns}
                else:
                    tally.leave_out(reader.line_num, "too few columns")
        except csv.Error as error:
            raise InputError(f"cannot read {file.label}, line {reader.line_num}: {error}") from None
        finally:
            text.detach()  # the stream is closed by its owner
    tally.check()


def numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float64 and (n,) bool: the values of a text column, and which of them are finite numbers."""
    column = pc.utf8_trim_whitespace(column)
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        is_number = pc.match_substring_regex(column, r"^[-+]?\d{1,20}(\.\d*)?([eE][-+]?\d{1,3})?$")
        values = pc.if_else(is_number, column, "nan").cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.isfinite(values)


def filled(column: pa.Array) -> np.ndarray:
    """(n,) bool: which texts are not blank."""
    return pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).to_numpy(zero_copy_only=False)


def decoded(content: bytes) -> str:
    """Text of a small file: UTF-8, else Latin-1 (what MovieLens wrote until 2011)."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
