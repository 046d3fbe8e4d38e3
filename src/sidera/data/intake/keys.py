"""Keys of users and items as text: whole numbers of any kind, text, bytes that are UTF-8; nothing else.

A key longer than :data:`MAX_BYTES` is no key but a mistake of columns, and tables of keys would grow with it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError

MAX_BYTES = 1024


def text_keys(column: pa.Array | pa.ChunkedArray, name: str, what: str) -> pa.Array | pa.ChunkedArray:
    """A column of keys as text (or as a dictionary of texts), null where there is none; InputError for other kinds.

    Doubles that are whole numbers (pandas makes them of integers beside a gap) are written without their point.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([text_keys(chunk, name, what) for chunk in column.chunks], dictionary_kind())
        values = text_keys(column.dictionary, name, what)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), values)
    if pa.types.is_floating(kind):
        gaps = pc.fill_null(pc.is_nan(column), True)
        fractions = pc.and_not(pc.fill_null(pc.not_equal(pc.floor(column), column), False), gaps)
        endless = pc.fill_null(pc.is_inf(column), False)
        for odd, problem in ((endless, "the endless value"), (fractions, "the fraction")):
            if pc.any(odd).as_py():
                row = pc.index(odd, True).as_py()
                raise InputError(
                    f"column {name!r} of {what} holds {kind}, with {problem} {column[row].as_py()!r} (row {row})",
                    allowed="text or integers",
                )
        if (pc.max(pc.abs(pc.if_else(gaps, 0.0, column.cast(pa.float64())))).as_py() or 0) > 2**53:
            raise InputError(
                f"column {name!r} of {what} holds {kind}s above 2^53, which are not exact",
                allowed="text or integers",
                fix="write the keys as text",
            )
        column = pc.if_else(gaps, None, column).cast(pa.int64())
    elif pa.types.is_decimal(kind):
        try:
            column = column.cast(pa.decimal128(38, 0))
        except pa.ArrowInvalid:
            raise InputError(
                f"column {name!r} of {what} holds {kind} with fractions", allowed="text or integers"
            ) from None
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return decoded(column, name, what)
    elif not (pa.types.is_integer(kind) or is_text(kind) or pa.types.is_null(kind)):
        raise InputError(f"column {name!r} of {what} holds {kind}", allowed="text or integers")
    return column.cast(pa.string())


def decoded(column: pa.Array | pa.ChunkedArray, name: str, what: str) -> pa.Array | pa.ChunkedArray:
    """Bytes as text; InputError when they are not UTF-8."""
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    try:
        text = column.cast(pa.string())
        for chunk in text.chunks if isinstance(text, pa.ChunkedArray) else [text]:
            chunk.validate(full=True)
    except pa.ArrowInvalid:
        row = next(row for row, value in enumerate(column.to_pylist()) if value is not None and not _is_utf8(value))
        raise InputError(
            f"column {name!r} of {what} holds bytes that are not UTF-8 (row {row}: {column[row].as_py()[:40]!r})",
            allowed="text",
            fix="write the column as text",
        ) from None
    return text


def check_length(keys: pa.Array, name: str, what: str) -> None:
    """InputError when one of the distinct keys is too long."""
    lengths = pc.binary_length(keys)
    longest = pc.max(lengths).as_py() or 0
    if longest > MAX_BYTES:
        key = keys[pc.index(lengths, longest).as_py()].as_py()
        raise InputError(
            f"{name} {key[:40] + '...'!r} of {what} is {longest:,} bytes long",
            allowed=f"keys of up to {MAX_BYTES:,} bytes",
            fix=f"check which column holds the {name}",
        )


def empty_keys(keys: pa.Array) -> np.ndarray:
    """(rows,) bool: no key, or an empty one."""
    if pa.types.is_dictionary(keys.type):
        empty = pc.fill_null(pc.equal(keys.dictionary, ""), True).to_numpy(zero_copy_only=False)
        positions = pc.fill_null(keys.indices, len(empty)).to_numpy(zero_copy_only=False)
        return np.append(empty, True)[positions]
    return pc.fill_null(pc.equal(keys, ""), True).to_numpy(zero_copy_only=False)


def dictionary_kind() -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string())


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
