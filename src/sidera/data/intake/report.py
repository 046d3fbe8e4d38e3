"""What an import read, kept, renamed and left out: lines for the screen, and a record kept with the data set."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.data.dataset import Dataset
from sidera.data.intake.keys import is_text

SHOWN = 8  # names in a line


@dataclass
class ImportReport:
    """The account of one import. ``warnings`` are what a reader must not miss."""

    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # encoding, delimiter, choices
    columns: list[str] = field(default_factory=list)  # "user ← visitorid"
    left_out: list[str] = field(default_factory=list)  # every column of the log that is not read, and why
    item_columns: list[str] = field(default_factory=list)
    user_columns: list[str] = field(default_factory=list)
    time: str = ""
    events: str = ""
    kinds: dict[str, int] = field(default_factory=dict)  # kind of event -> rows of it
    bad_rows: str = ""
    num_rows: int = 0
    num_events: int = 0
    num_users: int = 0
    num_items: int = 0
    duplicates: int = 0  # events beyond the first of each user, item and second
    duplicates_dropped: bool = False
    items_found: int | None = None  # items of the log that are in the items table; None: no table
    items_named: int = 0  # items of the log
    items_with_text: int = 0
    per_user: dict[str, float] = field(default_factory=dict)  # median, max, share_with_1
    period: tuple[str, str] | None = None
    first_rows: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the screen, without the warnings."""
        one = f"{self.per_user['share_with_1']:.0%} of users have one event"
        dropped = (
            "left out (one of each is kept)" if self.duplicates_dropped else "kept (--drop-duplicates leaves them out)"
        )
        repeats = (
            f"{self.duplicates:,} events repeat a user, item and second{f'; {dropped}' if self.duplicates else ''}"
        )
        joined = f"{self.items_found:,} of {self.items_named:,}" if self.items_found is not None else ""
        share = self.items_with_text / max(1, self.num_items)
        labelled = [
            ("read", f"{', '.join(self.files)}: {self.num_rows:,} rows"),
            *(("", note) for note in self.notes),
            ("columns", _some(self.columns)),
            ("left out", _some(self.left_out, len(self.left_out))),
            ("items", _some(self.item_columns, len(self.item_columns))),
            ("users", _some(self.user_columns, len(self.user_columns))),
            ("time", self.time),
            ("period", f"{' .. '.join(self.period)} UTC" if self.period else ""),
            ("kinds" if self.kinds else "events", (_counts(self.kinds) if self.kinds else "") + self.events),
            ("bad rows", self.bad_rows),
            ("per user", f"median {self.per_user['median']:g} events, at most {self.per_user['max']:,.0f}; {one}"),
            ("repeats", repeats),
            ("join", f"{joined} items of the log are in the items table" if joined else ""),
            ("text", f"{self.items_with_text:,} of {self.num_items:,} items have text ({share:.0%})"),
            *(("" if index else "first rows", row) for index, row in enumerate(self.first_rows)),
        ]
        return [f"{label:10} {text}" for label, text in labelled if text]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(report: ImportReport, dataset: Dataset, duplicates: int) -> None:
    """Fill in what the finished data set tells."""
    counts = np.diff(dataset.offsets)
    report.num_events, report.num_users, report.num_items = dataset.num_events, dataset.num_users, dataset.num_items
    report.duplicates = duplicates
    report.per_user = {
        "median": float(np.median(counts)),
        "max": float(counts.max()),
        "share_with_1": float((counts == 1).mean()),
    }
    if dataset.time_kind == "seconds":
        report.period = (moment(int(dataset.times.min())), moment(int(dataset.times.max())))
    texts = (
        dataset.items["text"] if "text" in dataset.items.column_names else pa.chunked_array([pa.array([], pa.string())])
    )
    if is_text(texts.type):
        report.items_with_text = int(pc.sum(pc.greater(pc.utf8_length(pc.fill_null(texts, "")), 0)).as_py() or 0)


def moment(seconds: int) -> str:
    try:
        return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    except OverflowError:
        return f"second {seconds}"


def first_rows(events: pa.Table, unit: str) -> list[str]:
    """The first three events as they were understood. ``unit`` of their time: "us" or another word for an order."""
    lines = []
    for row in events.slice(0, 3).to_pylist():
        words = [f"user {row.pop('user')!r}", f"item {row.pop('item')!r}"]
        if "time" in row:
            time = row.pop("time")
            words.append(f"time {moment(time // 10**6) if unit == 'us' else time}")
        lines.append(
            ", ".join([*words, *(f"{name} {value!r}" for name, value in row.items() if value is not None)])[:300]
        )
    return lines


def repeats(dataset: Dataset) -> np.ndarray:
    """(E,) bool: an earlier event has the same user, item and second (or position in the order)."""
    same = np.zeros(dataset.num_events, dtype=bool)
    users = dataset.event_users
    follows = (users[1:] == users[:-1]) & (dataset.times[1:] == dataset.times[:-1])
    if not follows.any():
        return same
    tied = np.flatnonzero(np.append(follows, False) | np.insert(follows, 0, False))
    order = np.lexsort((tied, dataset.item_ids[tied], dataset.times[tied], users[tied]))
    rows = tied[order]
    equal = (
        (users[rows[1:]] == users[rows[:-1]])
        & (dataset.times[rows[1:]] == dataset.times[rows[:-1]])
        & (dataset.item_ids[rows[1:]] == dataset.item_ids[rows[:-1]])
    )
    same[rows[1:][equal]] = True
    return same


def join_warning(log_keys: list[str], table_keys: list[str], matched: int, named: int) -> str:
    """What to say when few items of the log are in the items table; "" when most are."""
    if matched >= 0.5 * named or not named:
        return ""
    log_sample, table_sample = log_keys[:3], table_keys[:3]
    how = (
        f"no item of the log ({named:,} of {named:,} are missing)"
        if not matched
        else f"only {matched:,} of {named:,} items"
    )
    return (
        f"{how} {'is' if not matched else 'are'} in the items table: the log says {', '.join(map(repr, log_sample))}, "
        f"the table {', '.join(map(repr, table_sample))}{_cause(log_keys, set(table_keys))}"
    )


def _cause(log_keys: list[str], table: set[str]) -> str:
    """The likely cause: a way of writing the log's keys under which they are found."""
    stripped = {key.strip().lstrip("0") for key in table}
    ways = {
        "the log's keys end in '.0' (numbers that were read as fractions)": lambda key: key.removesuffix(".0") in table,
        "the table's keys end in '.0'": lambda key: f"{key}.0" in table,
        "the log's keys have spaces around them": lambda key: key.strip() in table,
        "leading zeros were lost": lambda key: key.strip().removesuffix(".0").lstrip("0") in stripped,
        "capital and small letters differ": lambda key: key.lower() in {other.lower() for other in table},
    }
    sample = log_keys[:50]
    for words, is_match in ways.items():
        if sum(map(is_match, sample)) >= 0.5 * len(sample):
            return f"; likely {words}; fix: write both the same way"
    digits = [key for key in sample if any(other.endswith(key) and other != key for other in list(table)[:200])]
    if digits:
        return "; likely the table's keys have a prefix; fix: write both the same way"
    return "; fix: write both the same way, or name the table's key column ([item_columns] key in --mapping)"


def _some(values: list[str], shown: int = 4 * SHOWN) -> str:
    more = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(values[:shown]) + more


def _counts(kinds: Mapping[str, int]) -> str:
    ordered = sorted(kinds.items(), key=lambda one: -one[1])
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(f"{kind or '(none)'} {count:,}" for kind, count in ordered[:SHOWN]) + more
