"""What users did and what they were shown, as a data folder: the step from serving back to training.

    sidera export-events store --exposures log --out data/exported
    sidera import data/exported --append data/shop

A user's events come out in the order of their times, ties in order of arrival, each once. An event and the exposure
that it answers are one row: same user and item, shown before it (or up to a minute after, by another clock), outcomes
that were logged first. The row has the request and the slot of the exposure. An outcome that no event of the store
tells of is a row of its own, at the second at which the item was shown. An exposure of which nothing followed is no
row, and is counted.

The folder is what ``sidera import`` writes. Its manifest says under ``exported`` which seconds it covers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.data.features import LONG_VIEW
from sidera.data.writer import dataset_writer
from sidera.store.exposures import logs_at, together
from sidera.store.history_store import HistoryStore

AHEAD = 60  # seconds that an event's clock may be behind that of its exposure
ALL_TIME = 2**62
Column = NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """What an export holds; seconds are unix seconds, ``since`` <= time < ``until``."""

    events: int
    users: int
    items: int
    first: int
    last: int
    since: int | None
    until: int | None
    exposures: int = 0  # read from the log, of those seconds
    answered: int = 0  # of them joined with an event of the store
    outcomes_alone: int = 0  # of them with an outcome that no event of the store tells of: rows of their own
    waiting: int = 0  # of them without any outcome: no rows


@dataclass(frozen=True)
class _Shown:
    """Exposures of one user, oldest first (n,)."""

    items: NDArray[np.int64]
    times: NDArray[np.int64]
    requests: NDArray[np.int64]
    slots: NDArray[np.int64]
    propensity: NDArray[np.float32]
    known: NDArray[np.bool_]  # an outcome of every column is there
    outcomes: Mapping[str, NDArray[np.float64]]


def export_events(
    store: HistoryStore, columns: tuple[str, ...], labels: tuple[str, ...], out: str | Path, *,
    exposures: pa.Table | None = None, since: int | None = None, until: int | None = None,
) -> Exported:  # fmt: skip
    """Write the data folder ``out``; an older one stands until it is whole.

    ``columns`` and ``labels``: of the store's events (:func:`store_columns`). ``exposures``: of
    :meth:`ExposureLog.read`. InputError when no event is in the range.
    """
    keys = store.item_keys()
    if exposures is not None and LONG_VIEW not in exposures.column_names and {"watch_time", "duration"} <= {*columns}:
        columns = tuple(name for name in columns if name != LONG_VIEW)  # derived from the two, by whoever reads them
    seen, places = _by_user(exposures, keys, columns, since, until)
    items = pa.table({"key": pa.array(list(places), pa.string())})
    kinds = {name: pa.bool_() if name in labels else pa.float32() for name in columns}
    if exposures is not None:
        kinds |= {"request": pa.int64(), "slot": pa.int64(), "propensity": pa.float32()}
    counts = dict.fromkeys(("answered", "outcomes_alone"), 0)
    span, num_events, next_request = [ALL_TIME, -1], 0, 0 if exposures is None else exposures.num_rows
    out = Path(out)
    users = sorted({*store.users(), *seen})
    with dataset_writer(out, out.resolve().name, items, kinds) as writer:
        for user in users:
            rows = _events(store, user, columns, labels, since, until)
            if exposures is not None:
                rows, next_request = _joined(rows, seen.get(user), columns, labels, counts, next_request)
            number = len(rows["time"])
            if not number:
                continue
            num_events += number
            span = [min(span[0], int(rows["time"][0])), max(span[1], int(rows["time"][-1]))]
            feedback = {name: rows[name] for name in kinds}
            writer.write(pa.table({"key": [user]}), np.array([number]), rows["item"], rows["time"], feedback)
        if not num_events:
            raise InputError(
                f"no event from second {since or 0} to {'now' if until is None else until}",
                fix="give another --since and --until",
            )
        done = Exported(
            num_events, writer.num_users, items.num_rows, span[0], span[1], since, until,
            exposures=sum(len(one.times) for one in seen.values()),
            waiting=sum(int((~one.known).sum()) for one in seen.values()), **counts,
        )  # fmt: skip
        writer.info["exported"] = asdict(done)
    return done


def store_columns(store: HistoryStore) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(columns, labels) of the events in a store; InputError when nobody has opened it with a catalogue yet."""
    from sidera.engine.histories import SCHEMA

    settled = store.settled(SCHEMA)
    if settled is None:
        raise InputError("the store does not know the columns of its events", fix="open it with `sidera serve --store`")
    record = json.loads(settled)
    return tuple(map(str, record["columns"])), tuple(map(str, record["labels"]))


def read_exposures(folder: str | Path) -> pa.Table:
    """Every exposure with what followed, of a log and of those beside it that are of other codebooks."""
    return together([log.read() for log in logs_at(folder)])


def _events(
    store: HistoryStore, user: str, columns: tuple[str, ...], labels: tuple[str, ...], since: int | None,
    until: int | None,
) -> dict[str, Column]:  # fmt: skip
    """The store's events of a user, as columns in time order; items by the store's numbers."""
    events = store.history(user, until)
    if events is None:
        return {"item": np.empty(0, np.int64), "time": np.empty(0, np.int64), **_none(columns, labels)}
    if since is not None:
        events = events.take(events.times >= since)
    rows: dict[str, Column] = {"item": events.item_ids.astype(np.int64), "time": events.times}
    bits = {name: ((events.labels >> place) & 1).astype(bool) for place, name in enumerate(labels)}
    rows |= {name: bits[name] for name in columns if name in labels}
    return rows | {name: getattr(events, name) for name in columns if name not in labels}


def _none(columns: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Column]:
    return {name: np.empty(0, bool if name in labels else np.float32) for name in columns}


def _by_user(
    exposures: pa.Table | None, keys: list[str], columns: tuple[str, ...], since: int | None, until: int | None
) -> tuple[dict[str, _Shown], dict[str, int]]:
    """Exposures by user, and item key -> number: the store's, and behind them those that only exposures name."""
    places = {key: place for place, key in enumerate(keys)}
    if exposures is None:
        return {}, places
    times = exposures["time"].to_numpy()
    kept = (times >= (since or 0)) & (times < (ALL_TIME if until is None else until))
    table = exposures.filter(pa.array(kept)).sort_by([("time", "ascending")])
    for key in pc.unique(table["item"]).to_pylist():
        places.setdefault(key, len(places))
    items = np.array([places[key] for key in table["item"].to_pylist()], dtype=np.int64)
    requests = pc.dictionary_encode(table["request"].combine_chunks()).indices.to_numpy(zero_copy_only=False)
    known = np.full(table.num_rows, bool(columns))  # without columns nobody can say what followed
    outcomes = {}
    for name in columns:
        there = name in table.column_names
        values = table[name].cast(pa.float64(), safe=False).to_numpy() if there else np.full(table.num_rows, np.nan)
        known &= table[name].is_valid().to_numpy() if there else False
        outcomes[name] = values
    whose = pc.dictionary_encode(table["user"].combine_chunks())
    numbers = whose.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(whose.dictionary) + 1))
    propensity = table["propensity"].to_numpy().astype(np.float32)
    found = {}
    for place, user in enumerate(whose.dictionary.to_pylist()):
        mine = order[bounds[place] : bounds[place + 1]]
        found[user] = _Shown(
            items[mine], table["time"].to_numpy()[mine], requests[mine].astype(np.int64),
            table["slot"].to_numpy()[mine].astype(np.int64), propensity[mine], known[mine],
            {name: values[mine] for name, values in outcomes.items()},
        )  # fmt: skip
    return found, places


def _joined(
    rows: dict[str, Column], shown: _Shown | None, columns: tuple[str, ...], labels: tuple[str, ...],
    counts: dict[str, int], next_request: int,
) -> tuple[dict[str, Column], int]:  # fmt: skip
    """The events of a user with the exposures that they answer, and outcomes that no event tells of."""
    number = len(rows["time"])
    answers = np.full(number, -1, dtype=np.int64)  # exposure that each event answers
    alone = np.empty(0, dtype=np.int64)
    if shown is not None:
        answers = _answers(rows["item"], rows["time"], shown)
        counts["answered"] += int((answers >= 0).sum())
        answered_mask = np.zeros(len(shown.times), dtype=bool)
        answered_mask[answers[answers >= 0]] = True
        alone = np.flatnonzero(shown.known & ~answered_mask)
        counts["outcomes_alone"] += len(alone)
    unasked = answers < 0  # nobody's request: each is one of its own
    requests, slots = np.full(number, -1, np.int64), np.full(number, -1, np.int64)
    propensity = np.full(number, np.nan, np.float32)
    if shown is not None:
        for column, values in ((requests, shown.requests), (slots, shown.slots), (propensity, shown.propensity)):
            column[~unasked] = values[answers[~unasked]]
    requests[unasked] = next_request + np.arange(unasked.sum())
    rows = {**rows, "request": requests, "slot": slots, "propensity": propensity}
    if shown is not None and len(alone):
        more: dict[str, Column] = {"item": shown.items[alone], "time": shown.times[alone]}
        more |= {"request": shown.requests[alone], "slot": shown.slots[alone], "propensity": shown.propensity[alone]}
        for name in columns:
            followed = shown.outcomes[name][alone]
            more[name] = followed != 0 if name in labels else followed.astype(np.float32)
        rows = {name: np.concatenate([values, more[name]]) for name, values in rows.items()}
        order = np.argsort(rows["time"], kind="stable")
        rows = {name: values[order] for name, values in rows.items()}
    return rows, next_request + int(unasked.sum())


def _answers(items: Column, times: Column, shown: _Shown) -> NDArray[np.int64]:
    """(n,) exposure that each event answers, each at most once; -1: none."""
    answers = np.full(len(items), -1, dtype=np.int64)
    waiting: dict[int, list[int]] = {}  # item -> its exposures, newest last
    for place, item in enumerate(shown.items.tolist()):
        waiting.setdefault(item, []).append(place)
    for known in (True, False):  # an outcome that was logged is certainly answered by somebody
        for event, (item, second) in enumerate(zip(items.tolist(), times.tolist(), strict=True)):
            if answers[event] >= 0 or not waiting.get(item):
                continue
            fitting = [p for p in waiting[item] if bool(shown.known[p]) is known and shown.times[p] <= second + AHEAD]
            if fitting:
                answers[event] = fitting[-1]
                waiting[item].remove(fitting[-1])
    return answers
