"""Times of any form as microseconds since 1970: numbers by their unit, text by its format, both found by themselves.

Numbers: the unit is the one that puts them between 1973 and 5138 (seconds below 1e11, milliseconds below 1e14,
microseconds below 1e17, then nanoseconds); numbers of two units in one column are refused. Small whole numbers are no
seconds of 1970: dates written as 20140301 are read as dates, 7,000 to 40,000 are days since 1970 (1989 to 2079), other
small ones are kept as an order. ``--time-unit`` says otherwise.

Text: ISO dates with space or T, fraction, offset, Z or UTC, slashes for dashes; day/month/year or month/day/year where
the column shows which (a day above 12), else ``--time-format``. Times without a zone are taken as UTC.

A :class:`TimeColumn` takes blocks, so a column of text is never held as text, and judges when all are in.
"""

from __future__ import annotations

import datetime
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.intake.numbers import numbers_of

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "d": 1 / 86_400}  # of the unit in a second
FIRST_SECOND, LAST_SECOND = 1e8, 1e11  # 1973 and 5138: numbers outside were not meant as seconds
DAYS = (7_000, 40_000)  # since 1970 that are taken for days: 1989 to 2079
NOTHING = np.iinfo(np.int64).min  # a row without a readable time
ISO = r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?)?(Z|[+-]\d\d:\d\d)?$"
SLASHED = re.compile(
    r"^\s*(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})(?:,?[ T]+(\d{1,2}):(\d\d)(?::(\d\d)(?:\.\d+)?)?\s*([AaPp][Mm])?)?\s*$"
)
EPOCH = datetime.datetime(1970, 1, 1)


class TimeColumn:
    """Blocks of one column of times; :meth:`finish` says what they are."""

    def __init__(self, unit: str = "", time_format: str = "") -> None:
        self.unit, self.format = unit, time_format
        self.numbers: list[np.ndarray] = []  # float64 or int64, NaN or NOTHING where there is none
        self.is_text = False  # of dates: ``numbers`` are microseconds
        self.slashed: list[np.ndarray] = []  # (rows,) number in ``texts``, -1 where there is none
        self.texts: dict[str, int] = {}
        self.example = ""

    def add(self, column: pa.Array) -> np.ndarray:
        """Take a block in; -> (rows,) bool, the rows that hold a time."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        if pa.types.is_temporal(kind) and not pa.types.is_time(kind) and not pa.types.is_duration(kind):
            self.is_text = True
            return self._micros(
                column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
            )
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            if not (
                pa.types.is_integer(kind)
                or pa.types.is_floating(kind)
                or pa.types.is_decimal(kind)
                or pa.types.is_null(kind)
            ):
                raise InputError(f"the time column holds {kind}", allowed="numbers, dates, timestamps or text of them")
            return self._numbers(numbers_of(column)[0])
        if self.format:
            return self._by_format(column)
        if not self.is_text and not self.slashed:
            numbers, readable = numbers_of(column)
            if self.numbers or 2 * readable.sum() >= _filled(column).sum():
                return self._numbers(numbers)
        if not self.slashed and (self.is_text or _iso_rows(_normal(column))[0].any()):
            self.is_text = True
            return self._micros(parse_iso(column))
        return self._add_slashed(column)

    def finish(self) -> tuple[np.ndarray, str, str]:
        """-> ((rows,) int64, its unit ("us", or "order"), what was found, in words). Rows without a time are 0."""
        if self.slashed:
            micros, order = _read_slashed(np.concatenate(self.slashed), self.texts)
            return np.where(micros == NOTHING, 0, micros), "us", f"text, {order} first, as UTC"
        values = np.concatenate(self.numbers) if self.numbers else np.zeros(0)
        if self.is_text or self.format:
            return np.where(values == NOTHING, 0, values).astype(np.int64), "us", "dates, as UTC where no zone is given"
        return _with_unit(values, self.unit)

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        if self.is_text:
            raise InputError(f"the time column holds dates and numbers such as {_first(values)}", allowed="one of them")
        self.numbers.append(values)
        return np.isfinite(values) & (values >= 0) if values.dtype.kind == "f" else values >= 0

    def _micros(self, column: pa.Array | np.ndarray) -> np.ndarray:
        if isinstance(column, pa.Array | pa.ChunkedArray):
            column = pc.fill_null(column, NOTHING).to_numpy(zero_copy_only=False)
        if self.numbers and self.numbers[0].dtype.kind == "f":
            raise InputError("the time column holds numbers first and dates later", allowed="one of them")
        self.numbers.append(column)
        return column >= 0

    def _by_format(self, column: pa.Array) -> np.ndarray:
        encoded = column.dictionary_encode()
        micros = np.full(len(encoded.dictionary) + 1, NOTHING)
        for position, text in enumerate(encoded.dictionary.to_pylist()):
            try:
                moment = datetime.datetime.strptime(text.strip(), self.format)
            except ValueError:
                continue
            micros[position] = _micros_of(moment)
        self.is_text = True
        return self._micros(micros[pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()])

    def _add_slashed(self, column: pa.Array) -> np.ndarray:
        encoded = column.dictionary_encode()
        rows = np.full(len(encoded.dictionary) + 1, -1)
        for position, text in enumerate(encoded.dictionary.to_pylist()):
            if SLASHED.match(text):
                rows[position] = self.texts.setdefault(text, len(self.texts))
            elif text.strip() and not self.example:
                self.example = text
        if not self.texts and self.example:
            raise InputError(
                f"time {self.example!r} is neither a number nor an ISO date",
                allowed="unix times, or dates like 2014-03-01 or 2014-03-01 12:30:00",
                fix="say how it is written: --time-format '%d %b %Y'",
            )
        block = rows[pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()]
        self.slashed.append(block)
        return block >= 0


def parse_iso(column: pa.Array) -> np.ndarray:
    """(rows,) int64 microseconds, NOTHING where a value is no ISO date."""
    text = _normal(column)
    iso, zoned = _iso_rows(text)
    moments = np.full(len(text), NOTHING)
    for rows, kind in ((iso & zoned, pa.timestamp("us", tz="UTC")), (iso & ~zoned, pa.timestamp("us"))):
        if not rows.any():
            continue
        part = text if rows.all() else text.filter(pa.array(rows))
        try:
            moments[rows] = part.cast(kind).cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:  # the 30th of February
            moments[rows] = [_one_iso(value) for value in part.to_pylist()]
    return moments


def _normal(column: pa.Array) -> pa.Array:
    """Texts in the form that Arrow reads: dashes, a point, six digits of a fraction, Z or +hh:mm."""
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    if not len(text):
        return text
    if pc.any(pc.match_substring(text, "/")).as_py():
        text = pc.replace_substring_regex(text, r"^(\d{4})/(\d\d?)/(\d\d?)", r"\1-\2-\3")
    if pc.any(pc.match_substring_regex(text, r" ?(UTC|GMT|z)$")).as_py():
        text = pc.replace_substring_regex(text, r" ?(UTC|GMT|z)$", "Z")
    if pc.any(pc.match_substring_regex(text, r"[0-9]( [+-]|[+-]\d{4}$|[+-]\d\d$)")).as_py():
        text = pc.replace_substring_regex(text, r"(:\d\d(?:[.,]\d+)?) ?([+-]\d\d):?(\d\d)?$", r"\1\2:\3")
        text = pc.replace_substring_regex(text, r":$", ":00")
    if pc.any(pc.match_substring_regex(text, r"[.,]\d{7,9}|,\d")).as_py():
        text = pc.replace_substring_regex(text, r"[.,](\d{1,6})\d*", r".\1")
    return text


def _iso_rows(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """-> (rows that look like an ISO date, rows that name a zone)."""
    iso = pc.fill_null(pc.match_substring_regex(text, ISO), False)
    zoned = pc.fill_null(pc.match_substring_regex(text, r"(Z|:\d\d[^:]*[+-]\d\d:\d\d)$"), False)
    return iso.to_numpy(zero_copy_only=False), zoned.to_numpy(zero_copy_only=False)


def _one_iso(text: str) -> int:
    try:
        return _micros_of(datetime.datetime.fromisoformat(text))
    except ValueError:
        return int(NOTHING)


def _micros_of(moment: datetime.datetime) -> int:
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


def _read_slashed(rows: np.ndarray, texts: dict[str, int]) -> tuple[np.ndarray, str]:
    """(rows,) microseconds of dates with the year last; InputError when day and month cannot be distinguished."""
    matches = [match for match in map(SLASHED.match, texts) if match is not None]
    firsts, seconds = ({int(match[group]) for match in matches} for group in (1, 2))
    day_first, month_first = max(seconds, default=0) <= 12, max(firsts, default=0) <= 12
    example = next(iter(texts), "")
    if day_first == month_first:
        problem = "may be day/month or month/day" if day_first else "are day/month in some rows, month/day in others"
        raise InputError(
            f"times such as {example!r} {problem}",
            fix="say which: --time-format '%d/%m/%Y' or '%m/%d/%Y' (with %H:%M:%S where there is a time of day)",
        )
    micros = np.full(len(texts) + 1, NOTHING)
    for position, match in enumerate(matches):
        day, month = (match[1], match[2]) if day_first else (match[2], match[1])
        hour = int(match[4] or 0) % (12 if match[7] else 24) + 12 * ((match[7] or "").lower() == "pm")
        try:
            moment = datetime.datetime(
                int(match[3]), int(month), int(day), hour, int(match[5] or 0), int(match[6] or 0)
            )
        except ValueError:
            continue
        micros[position] = _micros_of(moment)
    return micros[rows], "day" if day_first else "month"


def _with_unit(values: np.ndarray, unit: str) -> tuple[np.ndarray, str, str]:
    good = np.isfinite(values) & (values >= 0) if values.dtype.kind == "f" else values >= 0
    known = values[good]
    if not len(known):
        return np.zeros(len(values), dtype=np.int64), "us", "nothing"
    low, high = known.min(), known.max()
    whole = values.dtype.kind == "i" or bool((known == np.floor(known)).all())
    if unit:
        if high / UNITS[unit] > LAST_SECOND:
            row = int(np.argmax(np.where(good, values, 0)))
            better = _unit_of(float(high))
            raise InputError(
                f"time {int(high)} is not in {_WORDS[unit]} (row {row})",
                allowed=f"0..{LAST_SECOND * UNITS[unit]:.0f}",
                fix=f"pass --time-unit {better}" if better else "give unix seconds",
            )
        return _scaled(values, good, unit), "us", f"numbers, in {_WORDS[unit]} (as said)"
    dates = _as_dates(values, good, int(low), int(high)) if whole else None
    if dates is not None:
        return dates, "us", "whole numbers such as 20140301, read as dates"
    if high < FIRST_SECOND:
        if whole and low >= DAYS[0] and high <= DAYS[1]:
            said = f"whole numbers {int(low)}..{int(high)}, read as days since 1970 (--time-unit s says otherwise)"
            return _scaled(values, good, "d"), "us", said
        said = (
            f"{low:g}..{high:g} are no unix seconds: kept as an order without times "
            "(--time-unit d if they are days, s if they are seconds)"
        )
        if whole:
            return np.where(good, values, 0).astype(np.int64), "order", said
        return np.where(good, np.unique(values, return_inverse=True)[1], 0).astype(np.int64), "order", said
    units = {_unit_of(float(value)) for value in (low, high, float(np.median(known)))}
    best = _unit_of(float(np.median(known)))
    others = known[(known > 0) & (known / UNITS[best or "ns"] > LAST_SECOND)] if best else known
    small = known[(known < FIRST_SECOND * UNITS[best]) & (known > 0)] if best else known
    if not best or len(others) or (len(units) > 1 and len(small)):
        odd = int(others[0]) if len(others) else int(small[0]) if len(small) else int(high)
        row = int(np.argmax(values == odd))
        raise InputError(
            f"the times are not of one unit: {int(np.median(known))} and, in row {row}, {odd}",
            allowed="seconds, milliseconds, microseconds or nanoseconds since 1970",
            fix="write them in one unit, or say which: --time-unit s",
        )
    return _scaled(values, good, best), "us", f"numbers, in {_WORDS[best]} since 1970"


_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "d": "days"}


def _unit_of(value: float) -> str:
    return next((unit for unit in ("s", "ms", "us", "ns") if value / UNITS[unit] < LAST_SECOND), "")


def _scaled(values: np.ndarray, good: np.ndarray, unit: str) -> np.ndarray:
    values = np.where(good, values, 0)
    if unit == "ns":
        return (values // 1000).astype(np.int64)
    factor = 1e6 / UNITS[unit]
    if values.dtype.kind == "i":
        return values.astype(np.int64) * int(factor)
    return np.round(values * factor).astype(np.int64)


def _as_dates(values: np.ndarray, good: np.ndarray, low: int, high: int) -> np.ndarray | None:
    """Microseconds of numbers written YYYYMMDD or YYYYMMDDhhmmss; None when they are not all such."""
    if low >= 19000101 and high <= 21001231:
        scale = 1
    elif low >= 19000101000000 and high <= 21001231235959:
        scale = 1_000_000
    else:
        return None
    unique, rows = np.unique(np.where(good, values, low).astype(np.int64), return_inverse=True)
    if len(unique) > 2_000_000:
        return None
    micros = np.zeros(len(unique), dtype=np.int64)
    for position, value in enumerate(unique.tolist()):
        day, clock = divmod(value, scale)
        try:
            moment = datetime.datetime(
                day // 10000, day // 100 % 100, day % 100, clock // 10000, clock // 100 % 100, clock % 100
            )
        except ValueError:
            return None
        micros[position] = _micros_of(moment)
    return np.where(good, micros[rows], 0)


def _filled(column: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.not_equal(column, ""), False).to_numpy(zero_copy_only=False)


def _first(values: np.ndarray) -> str:
    some = values[np.isfinite(values)]
    return f"{some[0]:g}" if len(some) else "none"
