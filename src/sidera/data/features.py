"""What is known besides item ids: feedback of every exposure, and features of items, users, requests and events.

A model that reads feedback gets every logged event with its columns; a model that reads items alone gets the *positive*
events only. ``[data] positive`` names the column that makes an event positive, i.e. something to recommend again:
``"click"``, ``"like"``, or ``"long_view"``, which is derived here. Both kinds of model are asked the same questions.

**Long view**: watched longer than a quantile of what items of like duration are watched (buckets of log2 duration), so
that long items do not win by their length (OneRec-V2, 2508.20900, section on duration-aware shaping, with one threshold
a bucket for all users instead of one distribution a user). Thresholds come from training events only.

:class:`FeatureSchema` is what a model and the engine share: names of label columns, features with their vocabularies
(``data.feature``), thresholds. It is fitted once, kept with the Catalog, and read by both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from sidera import config
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.feature import Feature, FeatureConfig, Owner
from sidera.data.feature_fitting import column_of, columns_of, declared_features, found_features

LONG_VIEW = "long_view"
POSITIVE = "positive"  # a mark of this name says which events of a log count, unless the recipe names another label
BOOKKEEPING = ("propensity", "uniform", "request", "slot", "session")  # of the log, no reaction of the user
MAX_DURATION_LOG2 = 16  # 18 hours


@dataclass(frozen=True)
class FeatureSchema:
    """How events, items, users and requests are read."""

    positive: str = ""  # the label that makes an event positive; "": all are
    labels: tuple[str, ...] = ()  # boolean feedback columns, long_view among them where it can be derived
    has_watch_time: bool = False
    has_duration: bool = False
    features: tuple[Feature, ...] = ()
    declared: bool = False  # the recipe names them; False: they are what was found
    long_view_seconds: tuple[float, ...] = ()  # threshold of each log2 bucket of duration

    @property
    def columns(self) -> tuple[str, ...]:
        """Feedback columns that a batch must carry for a model that reads feedback."""
        watch = ("watch_time",) if self.has_watch_time else ()
        return (*self.labels, *watch, *(("duration",) if self.has_duration else ()))

    def owned(self, *owners: Owner) -> tuple[Feature, ...]:
        """The features of these owners, in order."""
        return tuple(feature for feature in self.features if feature.owner in owners)

    @property
    def batched(self) -> tuple[Feature, ...]:
        """Features of items that batches carry. Numbers that were only found are read by who reads the whole
        catalogue."""
        items = self.owned("item")
        return items if self.declared else tuple(feature for feature in items if feature.kind == "category")

    def said_of_items(self, items: pa.Table) -> dict[str, np.ndarray]:
        """feature -> (N, ...) of an items table, of those alone whose columns it has."""
        owned = self.owned("item")
        return {each.name: each.encode(items[each.source]) for each in owned if each.source in items.column_names}

    def categories_of(self, items: pa.Table) -> dict[str, np.ndarray]:
        """Likewise, feature -> (N,) int64 of those with one value an item."""
        return {name: values for name, values in self.said_of_items(items).items() if values.dtype.kind == "i" and
                values.ndim == 1}  # fmt: skip

    def of_items(self, items: pa.Table) -> dict[str, np.ndarray]:
        """feature -> (N, ...) of every row of an items table. InputError where a required column is not there."""
        found = {}
        for feature in self.owned("item"):
            if feature.source in items.column_names:
                found[feature.name] = feature.encode(items[feature.source])
            elif feature.required:
                raise InputError(
                    f"the items have no column {feature.source!r}, which {feature.place} is read from",
                    allowed=f"those they have: {', '.join(items.column_names)}",
                    fix="add the column, empty where nothing is known",
                )
            else:
                found[feature.name] = feature.unknown(items.num_rows)
        return found

    def of_log(self, dataset: Dataset, *owners: Owner) -> dict[str, np.ndarray]:
        """feature -> (U, ...) of users, (E, ...) of requests and events, by a log's columns."""
        found = {}
        for feature in self.owned(*owners):
            column = column_of(dataset, feature.owner, feature.source)
            if column is not None:
                found[feature.name] = feature.encode(column)
            elif feature.required:
                raise InputError(
                    f"data set {dataset.name!r} has no column {feature.source!r}, which {feature.place} is read from",
                    allowed=", ".join(columns_of(dataset, feature.owner)) or "nothing: it has no column",
                )
            else:
                number = dataset.num_users if feature.owner == "user" else dataset.num_events
                found[feature.name] = feature.unknown(number)
        return found

    def of_profile(self, profile: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
        """What a request says of its user and of itself -> feature -> (1, ...), and the values that training never
        saw. InputError for a required feature that it does not name, and for a name that is none (declared ones)."""
        features = self.owned("user", "request")
        if self.declared and (strange := [name for name in profile if name not in {each.name for each in features}]):
            raise InputError(
                f"the profile names {strange[0]!r}, which the model was not trained with",
                allowed=", ".join(feature.name for feature in features) or "nothing",
                fix="leave it out, or declare it and train again",
            )
        found, unseen = {}, []
        for feature in features:
            if feature.required and feature.name not in profile:
                raise InputError(
                    f"the profile lacks {feature.place}", fix=f'send "{feature.name}" in the profile, null if unknown'
                )
            found[feature.name], strange = feature.encode_values([profile.get(feature.name)])
            unseen += strange
        return found, unseen

    def of_events(self, columns: Mapping[str, Sequence[Any]], number: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """What a request's feedback says of its events -> feature -> (number, ...), and the values never seen.

        Without any feedback nothing is known. InputError for a required feature that the feedback leaves out.
        """
        found, unseen = {}, []
        for feature in self.owned("event"):
            values = columns.get(feature.name)
            if values is None:
                if feature.required and columns:
                    raise InputError(
                        f"the history has feedback ({', '.join(columns)}) but no {feature.place}",
                        fix="add it, null where unknown, or leave all feedback out",
                    )
                found[feature.name] = feature.unknown(number)
                continue
            if isinstance(values, str) or len(values) != number:
                raise InputError(f"{feature.place} has {len(values)} values for {number} events", allowed="one each")
            found[feature.name], strange = feature.encode_values(list(values))
            unseen += strange
        return found, unseen

    @cached_property
    def event_names(self) -> frozenset[str]:
        """Features that come with the feedback of a history."""
        return frozenset(feature.name for feature in self.owned("event"))

    def complete(self, feedback: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
        """column -> (number,) float32 of every column that models read; derives long_view where it is not given.

        No column at all means that the history is a list of items somebody chose: they count as positive, with the
        watch time unknown (NaN). A part of the columns is refused: a guess would be read as a fact.
        """
        given = {name: _numbers(name, values) for name, values in feedback.items() if name not in self.event_names}
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
            "features": [asdict(feature) for feature in self.features],
            "declared": self.declared,
            "long_view_seconds": [float(value) for value in self.long_view_seconds],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureSchema:
        return config.parse_section(cls, values, "schema")


def fit_schema(
    dataset: Dataset,
    positive: str,
    known_mask: np.ndarray,
    quantile: float = 0.65,
    declared: Mapping[str, FeatureConfig] | None = None,
) -> FeatureSchema:
    """Learn names, vocabularies and thresholds. ``known_mask`` (E,): events that may be learned from.

    ``declared``: the features; without any those that are found. A column of the log that is declared is no label.
    """
    declared = declared or {}
    features = declared_features(dataset, declared, known_mask) if declared else found_features(dataset)
    taken = {feature.source for feature in features if feature.owner in ("request", "event")}
    labels = [
        name for name, values in dataset.feedback.items()
        if values.dtype == bool and name not in BOOKKEEPING and name not in taken
    ]  # fmt: skip
    watch, duration = (_seconds(dataset, name) for name in ("watch_time", "duration"))
    thresholds: tuple[float, ...] = ()
    if watch is not None and duration is not None and LONG_VIEW not in labels:
        thresholds = long_view_thresholds(watch[known_mask], duration[known_mask], quantile)
        labels.append(LONG_VIEW)
    if positive and positive not in labels:
        other = dataset.feedback.get(positive)
        what = "is not in the log" if other is None else f"holds {other.dtype}, not true or false"
        raise InputError(f"[data] positive = {positive!r} {what}", allowed=", ".join(labels) or "nothing: leave it out")
    return FeatureSchema(
        positive=positive,
        labels=tuple(sorted(labels)),
        has_watch_time=watch is not None,
        has_duration=duration is not None,
        features=features,
        declared=bool(declared),
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


def _numbers(name: str, values: Any) -> np.ndarray:
    """(n,) float32 of a column of a request's feedback; what reaches beyond 32 bits becomes endless."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=np.float32)
    except OverflowError:  # a whole number beyond 64 bits
        return np.full(np.shape(values), np.inf, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"feedback {name!r} holds no number somewhere", allowed="numbers, true and false") from None
