"""One conversion: options, what was left out and why, and the last step from thinned events to a Dataset."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw.events import RawEvents, k_core, repeats
from sidera.data.raw.files import RawFile, RawFiles
from sidera.data.raw.lines import Tally
from sidera.data.schema import build_dataset

Dedupe = Literal["none", "exact", "pairs"]


@dataclass(frozen=True)
class Options:
    """How a raw log is thinned; each format states its own defaults."""

    core: int = 0  # users and items keep at least so many events, repeatedly; 0: all stay
    min_rating: float | None = None  # events rated lower are no event
    dedupe: Dedupe = "none"  # exact: equal in every column; pairs: a user meets an item once, the earliest time
    since: str = ""  # ISO date: earlier events are left out
    until: str = ""  # ISO date: events from this day on are left out
    rare: int = 0  # brands and category names of fewer items are left out; 0: all stay
    max_bad: float = 0.01  # share of lines that may be left out because they cannot be understood


@dataclass
class Conversion:
    """What a format's reader works with."""

    name: str
    files: RawFiles
    options: Options
    notes: dict[str, Any] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)

    def tally(self, file: RawFile) -> Tally:
        tally = Tally(file.label, self.options.max_bad)
        self.tallies.append(tally)
        return tally

    def count(self, what: str, number: int) -> None:
        if number:
            self.notes[what] = self.notes.get(what, 0) + int(number)

    def thinned(self, events: RawEvents, per_second: int = 1) -> RawEvents:
        """Period, rating, repeats, k-core; ``per_second``: ticks of the times."""
        options = self.options
        _check(options)
        self.notes["events_read"] = len(events)
        for bound, late in ((options.since, False), (options.until, True)):
            if bound:
                moment = _seconds(bound) * per_second
                events = self.without(events, "events_out_of_period", (events.times >= moment) == late)
        if options.min_rating is not None:
            if "rating" not in events.columns:
                raise InputError(f"--min-rating {options.min_rating}, but the log has no rating", fix="leave it out")
            low = ~(events.columns["rating"] >= options.min_rating)
            events = self.without(events, "events_rated_lower", low)
        if options.dedupe != "none":
            events = self.without(events, "events_repeated", repeats(events, options.dedupe == "pairs"))
        if options.core > 1:
            mask = k_core(events.user_codes, events.item_codes, options.core)
            events = self.without(events, f"events_outside_{options.core}_core", ~mask)
        if not len(events):
            left = ", ".join(f"{name} {number:,}" for name, number in self.notes.items() if name != "events_read")
            raise InputError(
                f"none of {self.notes['events_read']:,} events of {self.name!r} is left ({left or 'none was read'})",
                fix="lower --core or --min-rating, or check the files",
            )
        return events

    def without(self, events: RawEvents, what: str, gone: np.ndarray) -> RawEvents:
        self.count(what, int(gone.sum()))
        return events.keep(~gone)

    def dataset(
        self,
        events: RawEvents,
        items: pa.Table | None,
        users: pa.Table | None = None,
        *,
        time_unit: str = "s",
        text_fields: Sequence[str] = (),
    ) -> Dataset:
        """The Dataset of thinned events; of the items and users those that an event names."""
        fields = [name for name in text_fields if items is not None and name in items.column_names]
        made = build_dataset(self.name, events.table(), items, users, time_unit=time_unit, text_fields=fields)
        bad = {tally.label: f"{tally.bad} of {tally.read} lines" for tally in self.tallies if tally.bad}
        notes = {**made.notes, **self.notes, **({"lines_left_out": bad} if bad else {})}
        return replace(made, notes=notes)


@dataclass(frozen=True)
class RawFormat:
    """A publisher's format: how it is recognised, what it needs, and its reader."""

    about: str
    files: str  # which files it takes
    read: Callable[[Conversion], Dataset]
    options: Options = Options()


def item_table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType]) -> pa.Table:
    """Items as a table with the columns of ``types`` that hold at least one value; ``key`` comes first."""
    columns = {name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in types.items()}
    return pa.table({name: a for name, a in columns.items() if name == "key" or a.null_count < len(a)})


def stars(value: Any) -> float:
    """A rating as a number, NaN where there is none; ValueError for what is no number or infinite."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, (dict, list, bool)):
        raise ValueError(f"rating {str(value)[:20]!r} is no number")
    rating = float(value)
    if math.isinf(rating):
        raise ValueError("rating is infinite")
    return rating


def moment(value: Any) -> float:
    """A time as a number from 0 up; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"time {str(value)[:20]!r} is no number")
    time = float(value)
    if not 0 <= time < 1e15:
        raise ValueError(f"time {value!r} is out of range")
    return time


def key(value: Any, what: str) -> str:
    """An id as text; ValueError where it is missing, empty or no id."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"no {what}")


def _check(options: Options) -> None:
    for name, value, good in (
        ("--core", options.core, 0 <= options.core <= 1000),
        ("--rare", options.rare, options.rare >= 0),
        ("--max-bad", options.max_bad, 0 <= options.max_bad < 1),
    ):
        if not good:
            allowed = {"--core": "0..1000", "--rare": "0 or more", "--max-bad": "a share 0..1"}[name]
            raise InputError(f"{name} {value} is out of range", allowed=allowed)
    if options.dedupe not in ("none", "exact", "pairs"):
        raise InputError(f"--dedupe {options.dedupe!r} is not known", allowed="none, exact, pairs")


def _seconds(date: str) -> float:
    try:
        return datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise InputError(f"date {date!r} cannot be read", allowed="ISO dates like 2019-01-31") from None
