"""The options of an import: the flags of ``sidera import``, which a mapping file may hold as well.

time_unit = "ms"
[columns]            # of the log: user, item, time, position, rating, event; others are renamed feedback
user = "uid"
[item_columns]       # key, title, brand, categories, description, text, ...
key = "asin"
[keep]               # kinds of event that count, and how much each of them weighs
purchase = 3.0
"""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sidera.config import parse_section, read_toml
from sidera.core import InputError

TimeUnit = Literal["", "s", "ms", "us", "ns", "d"]
FileFormat = Literal["", "csv", "jsonl", "json", "parquet"]
LEFT_OUT = ("", "_", "-")  # names of --columns that leave a column out


@dataclass(frozen=True)
class ImportMapping:
    """How a foreign log is to be read; also the content of a mapping file."""

    columns: dict[str, str] = field(default_factory=dict)  # role -> column of the log
    item_columns: dict[str, str] = field(default_factory=dict)  # role -> column of the items file
    user_columns: dict[str, str] = field(default_factory=dict)  # role -> column of the users file
    time_unit: TimeUnit = ""  # s, ms, us, ns or d; "": found by the size of the numbers
    time_format: str = ""  # of text, as strptime has it ("%d/%m/%Y %H:%M"); "": found
    name: str | None = None  # of the data set; None: the name of the folder written
    strict_items: bool = False  # refuse events whose item is not in the items file
    text_fields: tuple[str, ...] = ()  # item columns that make up the text
    keep: dict[str, float] = field(default_factory=dict)  # kind of event -> weight; empty: all kinds
    min_rating: float | None = None  # leave out events rated lower
    order: Literal["", "rows"] = ""  # "rows": the order of the rows is the order of the events
    drop_duplicates: bool = False  # keep one event of each user, item and second
    max_bad: float = 0.01  # share of rows that may be left out because nobody can read them
    max_bytes: int | None = None  # that a file may swell to; None: see sources.SWELL
    format: FileFormat = ""  # of the log; "": by its ending and its first bytes
    delimiter: str = ""  # of the log's text; "": found
    encoding: str = ""  # of all text files; "": found
    header: bool = True  # the log's first line names its columns
    column_names: tuple[str, ...] = ()  # of a log without a header, in order

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad < 1:
            raise InputError(f"--max-bad {self.max_bad:g}", allowed="a share from 0 up, below 1 (0.01 is 1 %)")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise InputError(f"--max-bytes {self.max_bytes}", allowed="a number of bytes from 1 up")
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise InputError(f"--min-rating {self.min_rating}", allowed="a finite number")
        for kind, weight in self.keep.items():
            if not math.isfinite(weight) or weight < 0:
                raise InputError(f"--keep {kind}={weight:g}", allowed="a weight from 0 up")
        if self.keep and not any(self.keep.values()):
            raise InputError("--keep gives every kind the weight 0", fix="give the kinds that count a weight above 0")
        if self.encoding:
            _check_encoding(self.encoding)
        names = [name for name in self.column_names if name not in LEFT_OUT]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"--columns names {twice[0]!r} twice", allowed="every name once")


def read_mapping(path: str | Path) -> ImportMapping:
    return parse_section(ImportMapping, read_toml(path), str(path))


def parse_keep(text: str) -> dict[str, float]:
    """``"purchase=3,view=0"`` or ``"purchase,addtocart"`` -> kind -> weight, 1 where none is given."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, equals, weight = part.rpartition("=")
        if not equals:
            kind, weight = part, "1"
        try:
            values[kind.strip()] = float(weight)
        except ValueError:
            raise InputError(f"--keep {part!r}: {weight!r} is no number", allowed="KIND or KIND=WEIGHT") from None
    if not values:
        raise InputError("--keep names no kind of event", allowed="KIND,KIND or KIND=WEIGHT,...")
    return values


def parse_names(text: str) -> tuple[str, ...]:
    """``"user,item,_,time"`` -> names, a position without a name ("_") left out."""
    names = tuple(name.strip() for name in text.split(","))
    if all(name in LEFT_OUT for name in names):
        raise InputError(f"--columns {text!r} names no column", allowed="e.g. user,item,rating,time")
    return names


def _check_encoding(name: str) -> None:
    try:
        codec = codecs.lookup(name)
    except LookupError:
        raise InputError(
            f"encoding {name!r} is not known", allowed="utf-8, latin-1, utf-16, cp1251, gbk, ..."
        ) from None
    if not getattr(codec, "_is_text_encoding", True):
        raise InputError(f"encoding {name!r} is not one of text", allowed="utf-8, latin-1, cp1251, gbk, ...")
