"""Do quotation marks quote in this file, or are they letters?

A parser that takes ``"Heroes`` for the start of a quoted value reads on to the next mark, over line ends, and swallows
rows without a word. So before parsing, marks are held to the rule that quoting follows (RFC 4180): a value that begins
with a mark ends with one, at the end of its field, and marks inside it are doubled. A mark inside a value that did not
begin with one is a letter. Where the rule fails, and every line has as many fields as the first if all marks are
letters, they are letters. Where neither holds the file is refused, with a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

MARK, NEWLINE, RETURN = ord('"'), ord("\n"), ord("\r")


@dataclass(frozen=True)
class Quoting:
    """What the marks of a file are."""

    holds: bool  # the rule of quoting holds for all marks
    over_lines: bool  # some quoted value holds a line end
    lines_even: bool  # with marks as letters, every line has as many fields as the first
    broken_line: int = 0  # the line of the value whose mark breaks the rule


def judge_quotes(blocks: Iterable[bytes], delimiter: str) -> Quoting:
    """Go through the content (UTF-8, ``delimiter`` one character) once."""
    cut = ord(delimiter)
    inside, opened_at = False, 0  # in a quoted value, which began on that line
    holds, over_lines, even, broken = True, False, True, 0
    line, num_fields = 1, 0
    for block in _whole_lines(blocks):
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == NEWLINE)
        if even:
            even, num_fields = _same_fields(data, ends, cut, num_fields)
        if holds:
            marks = np.flatnonzero(data[1:-1] == MARK) + 1
            before, after = data[marks - 1], data[marks + 1]
            starts = (before == cut) | (before == NEWLINE) | (before == RETURN)
            stops = (after == cut) | (after == NEWLINE) | (after == RETURN)
            if _all_regular(marks, starts, stops, after == MARK, inside):
                positions, bad = marks, -1
            else:
                positions, bad = _scan(marks, starts, stops, inside)
            opens, closes = positions[int(inside) :: 2], positions[1 - int(inside) :: 2]
            opened_before = opened_at
            if len(opens):
                opened_at = line + int(np.searchsorted(ends, opens[-1]))
            if bad >= 0:
                holds, broken = False, opened_at if len(opens) else opened_before
            over_lines = over_lines or _holds_line_end(ends, opens, closes, inside)
            inside = bool((len(positions) + inside) % 2)
        line += len(ends)
    if holds and inside:
        holds, broken = False, opened_at
    return Quoting(holds, over_lines, even, broken)


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks cut at line ends; a return is put at either side, so that every mark has neighbours."""
    rest = b""
    for block in blocks:
        content = rest + block
        cut = content.rfind(b"\n") + 1
        rest = content[cut:]
        if cut:
            yield b"\r" + content[:cut] + b"\r"
    if rest:
        yield b"\r" + rest + b"\n\r"


def _all_regular(marks: np.ndarray, starts: np.ndarray, stops: np.ndarray, doubles: np.ndarray, inside: bool) -> bool:
    """Marks open at a field's start and close at its end in turn, doubled ones closing and opening at once."""
    within = (np.arange(len(marks)) + inside) % 2 == 1
    follows = np.concatenate([[False], np.diff(marks) == 1])
    return bool(np.where(within, stops | doubles, starts | follows).all())


def _scan(marks: np.ndarray, starts: np.ndarray, stops: np.ndarray, inside: bool) -> tuple[np.ndarray, int]:
    """Mark by mark: -> (positions that open and close in turn, position of the one that breaks the rule or -1)."""
    positions: list[int] = []
    skip = False
    for at, (mark, start, stop) in enumerate(zip(marks.tolist(), starts.tolist(), stops.tolist(), strict=True)):
        if skip:
            skip = False
        elif not inside:
            if start:
                positions.append(mark)
                inside = True
        elif at + 1 < len(marks) and marks[at + 1] == mark + 1:
            skip = True  # doubled: one mark of the value
        elif stop:
            positions.append(mark)
            inside = False
        else:
            return np.array(positions, dtype=np.int64), mark
    return np.array(positions, dtype=np.int64), -1


def _same_fields(data: np.ndarray, ends: np.ndarray, cut: int, num_fields: int) -> tuple[bool, int]:
    """-> (all lines that are not empty have as many fields as the first, that number)."""
    cuts = np.searchsorted(np.flatnonzero(data == cut), ends)
    counts = np.diff(cuts, prepend=0)[np.diff(ends, prepend=0) > 2] + 1
    if not num_fields and len(counts):
        num_fields = int(counts[0])
    return bool((counts == num_fields).all()), num_fields


def _holds_line_end(ends: np.ndarray, opens: np.ndarray, closes: np.ndarray, inside: bool) -> bool:
    starts = np.concatenate([[0], opens]) if inside else opens
    stops = closes if len(closes) == len(starts) else np.concatenate([closes, [np.iinfo(np.int64).max]])
    return bool((np.searchsorted(ends, stops) > np.searchsorted(ends, starts)).any())
