"""One feature: how a recipe declares it, and how a column or the values of a request become numbers.

    [data.features.brand]
    kind = "category"       # category | categories | number | vector | text | tokens
    owner = "item"          # item | user | request | event

A :class:`FeatureConfig` is what the recipe says. A :class:`Feature` is what training learned of it (vocabulary, width,
mean); it stands in the :class:`~sidera.data.features.FeatureSchema`, whose digest a model artifact carries, and both
training and serving encode with it.

A category is a whole number, 0 is "unknown": an empty value, or one that training never saw. With ``hash_size`` a value
is ``1 + crc32(value) % hash_size``, so no vocabulary is kept and no value is unseen. ``categories`` and ``tokens`` are
rows of ``length`` such numbers, 0 behind shorter ones. Numbers and vectors have mean 0 and spread 1, NaN where unknown.

Shape legend: n values · S length · W width of a vector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.bounds import shown
from sidera.core import InputError

Kind = Literal["category", "categories", "number", "vector", "text", "tokens"]
Owner = Literal["item", "user", "request", "event"]
Scale = Literal["auto", "standard", "log", "none"]
COUNTED = ("category", "categories", "tokens")  # kinds with a vocabulary
LISTS = ("categories", "tokens")
MEASURED = ("number", "vector")
MAX_VOCABULARY = 2**18
MAX_HASH = 2**24
MAX_LENGTH = 4096
LENGTHS = {"categories": 8, "tokens": 32}
FURTHEST = 1e3  # spreads from the mean; a slip of a sender must not swamp a network
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class FeatureConfig:
    """A table ``[data.features.NAME]`` of a recipe."""

    kind: Kind  # what its values are
    owner: Owner  # whose it is
    source: str = ""  # column of the items, the users or the log; "": the name of the feature
    vocabulary: tuple[str, ...] = ()  # of a category, categories or tokens; empty: learned from the training part
    hash_size: int | None = None  # numbers that values are hashed to; None: a vocabulary
    length: int | None = None  # values kept of each row of categories (None: 8) or tokens (None: 32)
    scale: Scale = "auto"  # of numbers: standard, by their logarithm first, as they are; auto: log if they reach far
    required: bool = True  # requests, sent events and new items must say it, null if unknown; false: unknown if absent


def check_declared(features: Mapping[str, FeatureConfig]) -> None:
    """InputError for a declaration that says nothing, contradicts itself, or names one column twice."""
    columns: dict[tuple[str, str, str], str] = {}
    for name, entry in features.items():
        where = f"[data.features.{name}]"
        if not name.strip():
            raise InputError(f"{where} has no name", fix="write [data.features.NAME]")
        counted, measured = entry.kind in COUNTED, entry.kind in MEASURED
        for key, given, fits, kinds in (
            ("vocabulary", entry.vocabulary, counted, COUNTED),
            ("hash_size", entry.hash_size is not None, counted, COUNTED),
            ("length", entry.length is not None, entry.kind in LISTS, LISTS),
            ("scale", entry.scale != "auto", measured, MEASURED),
        ):
            if given and not fits:
                raise InputError(f"{where} kind = {entry.kind!r} has no {key}", allowed=f"with {', '.join(kinds)}")
        if entry.kind == "text" and entry.owner != "item":
            raise InputError(
                f"{where} is a text of the {entry.owner}", allowed='owner = "item", for the catalogue',
                fix='kind = "tokens" is read by models',
            )  # fmt: skip
        if entry.vocabulary and entry.hash_size is not None:
            raise InputError(f"{where} has a vocabulary and a hash_size", allowed="one of them")
        _check_vocabulary(where, entry.vocabulary)
        for key, value, most in (("hash_size", entry.hash_size, MAX_HASH), ("length", entry.length, MAX_LENGTH)):
            if value is not None and not 1 <= value <= most:
                raise InputError(f"{where} {key} = {shown(value)} is out of range", allowed=f"1 to {most:,}")
        column = (entry.owner, entry.source or name, entry.kind)
        if column in columns:
            raise InputError(
                f"the {entry.owner}'s column {column[1]!r} is declared twice as {entry.kind}:"
                f" [data.features.{columns[column]}] and {where}", fix="leave one out",
            )  # fmt: skip
        columns[column] = name


def _check_vocabulary(where: str, vocabulary: Sequence[str]) -> None:
    if len(vocabulary) > MAX_VOCABULARY:
        raise too_many(where, len(vocabulary))
    if "" in vocabulary or len(set(vocabulary)) < len(vocabulary):
        worst = "" if "" in vocabulary else next(value for value in vocabulary if vocabulary.count(value) > 1)
        raise InputError(f"{where} vocabulary holds {worst!r}" + (" twice" if worst else ""),
                         allowed="different words, none empty")  # fmt: skip


def too_many(where: str, number: int) -> InputError:
    """What a vocabulary beyond ``MAX_VOCABULARY`` is answered with."""
    return InputError(
        f"{where} has {number:,} values", allowed=f"a vocabulary of at most {MAX_VOCABULARY:,}",
        fix=f"hash_size = {1 << min(24, (number - 1).bit_length() - 1)}: values share numbers, no vocabulary is kept",
    )  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """A fitted feature."""

    name: str
    kind: Kind
    owner: Owner
    source: str
    vocabulary: tuple[str, ...] = ()
    hash_size: int | None = None
    length: int = 0  # S of categories and tokens
    log: tuple[bool, ...] = ()  # (W,) True: the logarithm enters
    mean: tuple[float, ...] = ()  # (W,)
    spread: tuple[float, ...] = ()  # (W,)
    has_missing: bool = False  # training met rows without it: networks learn what that says
    required: bool = False

    def __post_init__(self) -> None:
        """InputError where a file holds what no fitting gives."""
        sizes = {len(self.log), len(self.mean), len(self.spread)}
        in_range = 0 <= self.length <= MAX_LENGTH and (self.hash_size is None or 1 <= self.hash_size <= MAX_HASH)
        if len(sizes) > 1 or not all(self.spread) or not in_range or self.kind == "text":
            raise InputError(f"{self.place} is no feature that was fitted")

    @property
    def num_values(self) -> int:
        """Rows of an embedding: "unknown" and the values."""
        return 1 + (len(self.vocabulary) if self.hash_size is None else self.hash_size)

    @property
    def width(self) -> int:
        """W of a number or vector, 0 of other kinds."""
        return len(self.mean)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one value: () of a category or number, (S,) of a list, (W,) of a vector."""
        return (self.length,) if self.kind in LISTS else (self.width,) if self.kind == "vector" else ()

    def unknown(self, number: int) -> np.ndarray:
        """(number, ...) rows of which nothing is known."""
        if self.kind in COUNTED:
            return np.zeros((number, *self.row_shape), dtype=np.int64)
        return np.full((number, *self.row_shape), np.nan, dtype=np.float32)

    def encode(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """A column (n,) of a table -> (n,) or (n, S) int64, (n,) or (n, W) float32. InputError unless it holds the
        kind."""
        column = whole(column)
        if self.kind == "category":
            return self._numbers_of(texts_of(column, self.place))
        if self.kind in LISTS:
            entries, lengths = entries_of(column, self.kind, self.place)
            return _padded(self._numbers_of(entries), lengths, self.length)
        return self._scaled(measures_of(column, self.kind, self.place, self.width))

    def encode_values(self, values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
        """Values (n,) of requests, None where unknown -> (n, ...) as :meth:`encode`, and the values that training
        never saw. InputError for a value of another kind."""
        if self.kind in MEASURED:
            rows = [self._measures(value) for value in values]
            found = self._scaled(np.array(rows, dtype=np.float64).reshape(len(rows), self.width))
            return found, []
        unseen: list[str] = []
        lists = [[self._number(text, unseen) for text in self._entries(value)] for value in values]
        if self.kind == "category":
            return np.array([row[0] if row else 0 for row in lists], dtype=np.int64), unseen
        found = np.zeros((len(lists), self.length), dtype=np.int64)
        for row, numbers in zip(found, lists, strict=True):
            known = [number for number in numbers if number][: self.length]
            row[: len(known)] = known
        return found, unseen

    @property
    def place(self) -> str:
        """For messages."""
        return f"feature {self.name!r} ({self.kind} of the {self.owner})"

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {value: number for number, value in enumerate(self.vocabulary, 1)}

    def number_of(self, text: str) -> int:
        """Of a value; 0 for one that training never saw."""
        return self._positions.get(text, 0) if self.hash_size is None else hashed(text, self.hash_size)

    def _number(self, text: str, unseen: list[str]) -> int:
        number = self.number_of(text)
        if not number:
            unseen.append(f"{self.name}={text}")
        return number

    def _numbers_of(self, texts: pa.Array) -> np.ndarray:
        """(n,) int64 of texts, 0 where null, empty or not in the vocabulary."""
        if self.hash_size is None:
            found = pc.index_in(texts, value_set=pa.array(self.vocabulary, type=pa.string()))
            return pc.fill_null(found, -1).to_numpy().astype(np.int64) + 1
        coded = texts.dictionary_encode()
        table = [hashed(text, self.hash_size) if text else 0 for text in coded.dictionary.to_pylist()]
        places = pc.fill_null(coded.indices, len(table)).to_numpy(zero_copy_only=False)
        return np.array([*table, 0], dtype=np.int64)[places]

    def _entries(self, value: Any) -> list[str]:
        """The texts in one value of a request."""
        if value is None:
            return []
        if self.kind == "tokens" and isinstance(value, str):
            return words_of(value)
        if self.kind in LISTS and isinstance(value, list | tuple):
            return [text for entry in value if (text := self._text(entry))]
        text = self._text(value)
        return [text] if text else []

    def _text(self, value: Any) -> str:
        if isinstance(value, bool | np.bool_):
            return str(bool(value)).lower()
        if isinstance(value, str | np.integer) or (isinstance(value, int) and not _is_endless(value)):
            return str(value)
        if isinstance(value, float | np.floating) and float(value).is_integer():
            return str(int(value))
        if isinstance(value, float | np.floating) and math.isnan(value):
            return ""
        allowed = "a text, a whole number, true, false or null"
        raise InputError(f"{self.place} = {shown(value)}", allowed=f"a list of these: {allowed}" if self.kind in LISTS
                         else allowed)  # fmt: skip

    def _measures(self, value: Any) -> list[float]:
        """(W,) numbers of one value of a request, NaN where unknown."""
        if value is None:
            return [math.nan] * self.width
        entries = value if self.kind == "vector" and isinstance(value, list | tuple | np.ndarray) else [value]
        good = all(
            isinstance(entry, bool | int | float | np.number | np.bool_) and not _is_endless(entry) for entry in entries
        )
        if not good or len(entries) != self.width:
            allowed = "a finite number or null" if self.kind == "number" else f"{self.width} finite numbers, or null"
            raise InputError(f"{self.place} = {shown(value)}", allowed=allowed)
        return [float(entry) for entry in entries]

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """(n, W) float64 -> (n,) of a number or (n, W) of a vector, float32."""
        values = np.where(np.isfinite(values), values, np.nan)
        logarithmic = np.asarray(self.log, dtype=bool)
        values[:, logarithmic] = np.log1p(np.maximum(values[:, logarithmic], 0))
        values = (values - np.asarray(self.mean)) / np.asarray(self.spread)
        found = np.clip(values, -FURTHEST, FURTHEST).astype(np.float32)
        return found[:, 0] if self.kind == "number" else found


def hashed(text: str, size: int) -> int:
    """1 to ``size``."""
    return 1 + crc32(text.encode()) % size


def words_of(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def texts_of(column: pa.Array, place: str) -> pa.Array:
    """(n,) text of each value of a column, of a list its first; InputError where the values are no names."""
    kind = column.type
    if is_list(kind):
        filled = pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None)
        return texts_of(whole(pc.list_element(filled, 0)), place)
    if pa.types.is_floating(kind):  # whole numbers with gaps
        column = pc.if_else(pc.is_nan(column), None, column)
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise InputError(
                f"{place} is read from fractions", allowed="texts, whole numbers, true and false",
                fix='declare it as a number: kind = "number"',
            ) from None  # fmt: skip
    known = pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null
    if not any(holds(column.type) for holds in known):
        raise InputError(f"{place} is read from a column of {kind}", allowed="texts, whole numbers, true and false")
    return column.cast(pa.string())


def entries_of(column: pa.Array, kind: str, place: str) -> tuple[pa.Array, np.ndarray]:
    """The texts in all rows of a column of lists (or of one value a row), one after another, and (n,) how many each
    row has; of tokens the words."""
    if not is_list(column.type):
        texts = texts_of(column, place)
        if kind == "categories":
            return texts, np.ones(len(texts), dtype=np.int64)
        rows: Iterable[list[str]] = [[] if text is None else words_of(text) for text in texts.to_pylist()]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return pa.array([word for row in rows for word in row], pa.string()), lengths
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return texts_of(whole(pc.list_flatten(column)), place), lengths


def measures_of(column: pa.Array, kind: str, place: str, width: int = 0) -> np.ndarray:
    """(n, W) float64 of a column of numbers or of vectors, NaN where there is none. ``width``: W, 0 for that of the
    first vector."""
    if kind == "number":
        return _floats(column, place)[:, None]
    if pa.types.is_null(column.type) and width:
        return np.full((len(column), width), np.nan)
    if not is_list(column.type):
        raise InputError(f"{place} is read from a column of {column.type}", allowed="lists of numbers")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    there = lengths > 0
    width = width or (int(lengths[there.argmax()]) if there.any() else 0)
    if not width:
        return np.full((len(column), 0), np.nan)
    if (wrong := there & (lengths != width)).any():
        row = int(wrong.argmax())
        raise InputError(f"{place} has {lengths[row]} numbers in row {row}", allowed=f"{width}, as in the others")
    found = np.full((len(column), width), np.nan)
    found[there] = _floats(whole(pc.list_flatten(column)), place).reshape(-1, width)
    return found


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _floats(column: pa.Array, place: str) -> np.ndarray:
    kind = column.type
    known = pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null
    if not any(holds(kind) for holds in known):
        raise InputError(f"{place} is read from a column of {kind}", allowed="numbers, true and false")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array without a dictionary."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def _padded(numbers: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """(n, S) int64: of each row the first known numbers, 0 behind them."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    known = numbers > 0
    rows, numbers = rows[known], numbers[known]
    counts = np.bincount(rows, minlength=len(lengths))
    ranks = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    early = ranks < length
    found = np.zeros((len(lengths), length), dtype=np.int64)
    found[rows[early], ranks[early]] = numbers[early]
    return found


def _is_endless(number: Any) -> bool:
    """Also a whole number that no float can hold."""
    try:
        return math.isinf(number)
    except OverflowError:
        return True
