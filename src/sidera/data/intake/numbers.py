"""Numbers of a column, whatever it is written in: text, decimals, dictionaries; and which values are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "\\n", "-", "<na>")  # lower case
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
COMMA = r"^[+-]?\d+,\d+$"
EXACT = 2**53  # whole numbers up to here are exact as float64


def numbers_of(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """-> ((rows,) int64 where all are whole and there, else float64 with NaN; (rows,) bool: holds a number).

    Infinite values are kept as they are: callers judge them.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        values, good = numbers_of(column.dictionary)
        positions = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        if (positions < 0).any() or not len(values):
            values, good = np.append(values.astype(np.float64), np.nan), np.append(good, False)
        return values[positions], good[positions]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _of_text(column)
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan), np.zeros(len(column), dtype=bool)
    if pa.types.is_decimal(kind) or pa.types.is_boolean(kind) or pa.types.is_uint64(kind):
        column = column.cast(pa.float64() if not pa.types.is_boolean(kind) else pa.int64(), safe=False)
    if column.null_count:
        values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
    else:
        values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False), np.ones(len(values), dtype=bool)
    values = values.astype(np.float64, copy=False)
    return values, ~np.isnan(values)


def _of_text(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    for target in (pa.int64(), pa.float64()):  # most columns are clean: one cast
        if column.null_count:
            break
        try:
            values = column.cast(target).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            continue
        return values, ~np.isnan(values) if target == pa.float64() else np.ones(len(values), dtype=bool)
    text = pc.utf8_trim_whitespace(column)
    good = pc.fill_null(pc.match_substring_regex(text, NUMBER), False)
    if not pc.any(good).as_py() or pc.any(pc.match_substring_regex(text, COMMA)).as_py():
        commas = pc.fill_null(pc.match_substring_regex(text, COMMA), False)
        if pc.any(commas).as_py():  # "4,5": a decimal comma
            text = pc.if_else(commas, pc.replace_substring(text, ",", "."), text)
            good = pc.or_(good, commas)
    endless = pc.fill_null(pc.match_substring_regex(text, r"(?i)^[+-]?inf(inity)?$"), False)
    good = pc.or_(good, endless)
    parsed = pc.if_else(good, text, None).cast(pa.float64())
    values = pc.fill_null(parsed, float("nan")).to_numpy(zero_copy_only=False)
    return values, good.to_numpy(zero_copy_only=False)


def missing_rows(column: pa.Array) -> np.ndarray:
    """(rows,) bool: the value is not there (null, NaN, or a text that says so)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        return pc.fill_null(pc.is_in(text, value_set=pa.array(MISSING, type=kind)), False).to_numpy(
            zero_copy_only=False
        ) | column.is_null().to_numpy(zero_copy_only=False)
    missing = column.is_null(nan_is_null=pa.types.is_floating(kind))
    return missing.to_numpy(zero_copy_only=False)
