"""What is known besides item ids: feedback of every exposure, categories of items, profiles of users.

A model that reads feedback gets every logged event with its columns; a model that reads items alone gets the *positive*
events only. ``[data] positive`` names the column that makes an event positive, i.e. something to recommend again:
``"click"``, ``"like"``, or ``"long_view"``, which is derived here. Both kinds of model are asked the same questions.

**Long view**: watched longer than a quantile of what items of like duration are watched (buckets of log2 duration), so
that long items do not win by their length (OneRec-V2, 2508.20900, section on duration-aware shaping, with one threshold
a bucket for all users instead of one distribution a user). Thresholds come from training events only.

:class:`FeatureSchema` is what a model and the engine share: names of label columns, vocabularies of categories,
thresholds. It is fitted once, kept with the Catalog, and read by both: what was trained is what is served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera import config
from sidera.core import InputError
from sidera.data.dataset import Dataset

LONG_VIEW = "long_view"
POSITIVE = "positive"  # a mark of this name says which events of a log count, unless the recipe names another label
ITEM_FIELDS = ("creator", "brand", "tags", "categories", "genres")  # read where an items table has them
BOOKKEEPING = ("propensity", "uniform", "request", "slot", "session")  # of the log, no reaction of the user
MAX_PROFILE_VALUES = 1000  # a column with more values names people, not kinds of people
MAX_DURATION_LOG2 = 16  # 18 hours


@dataclass(frozen=True)
class FeatureSchema:
    """How events, items and users are read. Category 0 is "unknown", the first value of a vocabulary is 1."""

    positive: str = ""  # the label that makes an event positive; "": all are
    labels: tuple[str, ...] = ()  # boolean feedback columns, long_view among them where it can be derived
    has_watch_time: bool = False
    has_duration: bool = False
    item_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # field -> vocabulary
    profile_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    long_view_seconds: tuple[float, ...] = ()  # threshold of each log2 bucket of duration

    @property
    def columns(self) -> tuple[str, ...]:
        """Feedback columns that a batch must carry for a model that reads feedback."""
        watch = ("watch_time",) if self.has_watch_time else ()
        return (*self.labels, *watch, *(("duration",) if self.has_duration else ()))

    def item_categories(self, items: pa.Table) -> dict[str, np.ndarray]:
        """field -> (N,) int64 category of every row of an items table; 0 where it is missing or was never seen."""
        found = {}
        for name, vocabulary in self.item_fields.items():
            if name in items.column_names:
                found[name] = _positions(_first_values(items[name]), vocabulary)
            else:
                found[name] = np.zeros(items.num_rows, dtype=np.int64)
        return found

    def profile_categories(self, users: pa.Table) -> dict[str, np.ndarray]:
        """field -> (U,) int64."""
        return {
            name: _positions(users[name].cast(pa.string()), vocabulary)
            if name in users.column_names
            else np.zeros(users.num_rows, dtype=np.int64)
            for name, vocabulary in self.profile_fields.items()
        }

    def profile_ids(self, name: str, values: Iterable[Any]) -> np.ndarray:
        """(B,) int64 category of each value of a user field; 0 for None and for a value that training never saw."""
        numbers = {value: number for number, value in enumerate(self.profile_fields[name], 1)}
        return np.array([0 if value is None else numbers.get(str(value), 0) for value in values], dtype=np.int64)

    def complete(self, feedback: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
        """column -> (number,) float32 of every column that models read; derives long_view where it is not given.

        No column at all means that the history is a list of items somebody chose: they count as positive, with the
        watch time unknown (NaN). A part of the columns is refused: a guess would be read as a fact.
        """
        with np.errstate(over="ignore"):  # said below, as an error
            given = {name: np.asarray(values, dtype=np.float32) for name, values in feedback.items()}
        for name, values in given.items():
            if np.isinf(values).any():
                raise InputError(f"feedback {name!r} holds a number beyond 32 bits", allowed="-3.4e38 to 3.4e38")
            if values.shape != (number,):
                raise InputError(f"feedback {name!r} has {values.size} values for {number} events", allowed="one each")
        if not given:
            nothing = {name: np.zeros(number, dtype=np.float32) for name in self.labels}
            nothing |= {name: np.full(number, np.nan, dtype=np.float32) for name in self.columns[len(self.labels) :]}
            return nothing | ({self.positive: np.ones(number, dtype=np.float32)} if self.positive else {})
        if LONG_VIEW in self.labels and LONG_VIEW not in given and {"watch_time", "duration"} <= given.keys():
            given[LONG_VIEW] = self.long_views(given["watch_time"], given["duration"]).astype(np.float32)
        for name in self.columns:
            if name not in given:
                raise InputError(
                    f"the history has feedback ({', '.join(given)}) but no {name!r}",
                    allowed=f"all of {', '.join(self.columns)}, or none",
                    fix="add the column, or leave all out: the events then count as positive",
                )
        return {name: given[name] for name in self.columns}

    def long_views(self, watch_time: np.ndarray, duration: np.ndarray) -> np.ndarray:
        """(E,) bool."""
        thresholds = np.asarray(self.long_view_seconds, dtype=np.float32)
        return np.asarray(watch_time, dtype=np.float32) > thresholds[duration_buckets(duration)]

    @property
    def digest(self) -> str:
        """Names everything that decides how events, items and users are read; a model artifact carries it."""
        return config.digest(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "positive": self.positive,
            "labels": list(self.labels),
            "has_watch_time": self.has_watch_time,
            "has_duration": self.has_duration,
            "item_fields": {name: list(values) for name, values in self.item_fields.items()},
            "profile_fields": {name: list(values) for name, values in self.profile_fields.items()},
            "long_view_seconds": [float(value) for value in self.long_view_seconds],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureSchema:
        return cls(
            positive=values["positive"],
            labels=tuple(values["labels"]),
            has_watch_time=values["has_watch_time"],
            has_duration=values["has_duration"],
            item_fields={name: tuple(entries) for name, entries in values["item_fields"].items()},
            profile_fields={name: tuple(entries) for name, entries in values["profile_fields"].items()},
            long_view_seconds=tuple(values["long_view_seconds"]),
        )


def fit_schema(
    dataset: Dataset,
    positive: str,
    known_mask: np.ndarray,
    quantile: float = 0.65,
    item_fields: Sequence[str] = (),
) -> FeatureSchema:
    """Learn names, vocabularies and thresholds. ``known_mask`` (E,): events that may be learned from.

    ``item_fields``: category columns of the items table; empty: those of ``ITEM_FIELDS`` that it has.
    """
    for name in item_fields:
        if name not in dataset.items.column_names:
            allowed = ", ".join(column for column in dataset.items.column_names if column != "key")
            raise InputError(f"[data] item_fields names {name!r}", allowed=allowed or "nothing: items have no column")
    labels = [name for name, values in dataset.feedback.items() if values.dtype == bool and name not in BOOKKEEPING]
    watch, duration = (_seconds(dataset, name) for name in ("watch_time", "duration"))
    thresholds: tuple[float, ...] = ()
    if watch is not None and duration is not None and LONG_VIEW not in labels:
        thresholds = long_view_thresholds(watch[known_mask], duration[known_mask], quantile)
        labels.append(LONG_VIEW)
    if positive and positive not in labels:
        other = dataset.feedback.get(positive)
        what = "is not in the log" if other is None else f"holds {other.dtype}, not true or false"
        raise InputError(f"[data] positive = {positive!r} {what}", allowed=", ".join(labels) or "nothing: leave it out")
    users = dataset.users
    used = item_fields or [name for name in ITEM_FIELDS if name in dataset.items.column_names]
    profiles = {}
    for name in users.column_names[1:]:
        values = _vocabulary(users[name].cast(pa.string())) if _is_kind(users[name].type) else ()
        if 0 < len(values) <= MAX_PROFILE_VALUES:
            profiles[name] = values
    return FeatureSchema(
        positive=positive,
        labels=tuple(sorted(labels)),
        has_watch_time=watch is not None,
        has_duration=duration is not None,
        item_fields={name: _vocabulary(_first_values(dataset.items[name])) for name in used},
        profile_fields=profiles,
        long_view_seconds=thresholds,
    )


def with_long_view(dataset: Dataset, schema: FeatureSchema) -> Dataset:
    """The data set with its ``long_view`` column, where the schema derives one."""
    if not schema.long_view_seconds:
        return dataset
    column = schema.long_views(dataset.feedback["watch_time"], dataset.feedback["duration"])
    return dataset.with_feedback(LONG_VIEW, column)


def long_view_thresholds(watch_time: np.ndarray, duration: np.ndarray, quantile: float) -> tuple[float, ...]:
    """Seconds per log2 bucket of duration; a bucket without events takes the nearest one that has some.

    Events whose watch time or duration is not known (NaN) say nothing of either.
    """
    known = ~(np.isnan(watch_time) | np.isnan(duration))
    watch_time, duration = watch_time[known], duration[known]
    if not len(watch_time):
        raise InputError("no training event has a watch time, so long views cannot be told", fix="use another positive")
    buckets = duration_buckets(duration)
    levels = np.full(MAX_DURATION_LOG2 + 1, np.nan)
    for bucket in np.unique(buckets):
        levels[bucket] = np.quantile(watch_time[buckets == bucket], quantile)
    there = np.flatnonzero(~np.isnan(levels))
    nearest = there[np.abs(np.arange(len(levels))[:, None] - there).argmin(axis=1)]
    return tuple(levels[nearest].astype(np.float32).astype(float).tolist())


def duration_buckets(duration: np.ndarray) -> np.ndarray:
    """(E,) int64 floor(log2(seconds)), 0 for a second or less, for unknown and for impossible durations."""
    seconds = np.nan_to_num(np.asarray(duration, dtype=np.float64), nan=1.0, posinf=1.0, neginf=1.0)
    return np.clip(np.floor(np.log2(np.maximum(seconds, 1.0))), 0, MAX_DURATION_LOG2).astype(np.int64)


def item_numbers(items: pa.Table) -> np.ndarray:
    """(N, F) float32: what an items table says in numbers and marks (duration, viral, a content vector), each column of
    mean 0 and spread 1, 0 where a value is missing. Whole numbers are left out: they are years, counts, or names.

    Columns without a negative value that reach far (over 5 times their median) enter by their logarithm.
    """
    columns = [np.zeros((items.num_rows, 0))]
    for name in items.column_names:
        kind, column = items[name].type, items[name].combine_chunks()
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            columns.append(column.cast(pa.float64()).to_numpy(zero_copy_only=False)[:, None])
        elif pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
            widths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(widths) == 1 and widths[0]:
                columns.append(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, widths[0]))
    values = np.concatenate(columns, axis=1).astype(np.float64)
    known = np.isfinite(values)
    for place in range(values.shape[1]):
        here = values[known[:, place], place]
        if len(here) and here.min() >= 0 and here.max() > max(1.0, 5 * float(np.median(here))):
            values[:, place] = np.log1p(values[:, place])
        here = values[known[:, place], place]
        if len(here):
            values[:, place] = (values[:, place] - here.mean()) / max(float(here.std()), 1e-6)
    return np.where(known, values, 0.0).astype(np.float32)


def _seconds(dataset: Dataset, name: str) -> np.ndarray | None:
    """A column of seconds, or None where the log has none; InputError when it holds something else."""
    values = dataset.feedback.get(name)
    if values is None:
        return None
    if values.dtype == bool:
        raise InputError(f"feedback {name!r} holds true and false", allowed="seconds, 0 or more")
    values = np.asarray(values, dtype=np.float32)
    for bad_mask, problem in ((values < 0, "negative"), (np.isinf(values), "endless")):
        if bad_mask.any():
            row = int(bad_mask.argmax())
            raise InputError(f"{name} {values[row]:g} of event {row} is {problem}", allowed="seconds, 0 or more")
    return values


def _is_kind(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _first_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A text column, or the first entry of each list; null where there is none."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        filled = pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None)
        return pc.list_element(filled, 0).cast(pa.string())
    return column.cast(pa.string())


def _vocabulary(column: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(sorted(value for value in pc.unique(column).to_pylist() if value))


def _positions(column: pa.ChunkedArray, vocabulary: Sequence[str]) -> np.ndarray:
    """(n,) int64: 1 + place in the vocabulary, 0 where the value is null or unknown."""
    found = pc.index_in(column, value_set=pa.array(vocabulary, type=pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64) + 1
