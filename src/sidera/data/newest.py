"""The new part of a log that grew, for a model that was trained on what came before.

    dataset = in_order(dataset, catalog.item_keys.tolist())      # ids are the catalogue's, newcomers behind them
    part = new_part(dataset, schema, since, gate_share=0.3)      # moments: since .. cut .. end
    source = rows_since(feed(reading, part.split(), 256), since, replay=1.0)

Three moments order the events: what came before ``since`` is known; what came until ``cut`` is learned; what came after
it is the newest part, on which the result is measured before it is learned too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sidera import config
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.dataset import Dataset, keys_of
from sidera.data.features import FeatureSchema, with_long_view
from sidera.data.split import EvalRows, Split, check_leaks

DAY = 86_400  # seconds


def in_order(dataset: Dataset, item_keys: list[str]) -> Dataset:
    """The data set with the ids of a catalogue: its items first, in its order, then those that it does not hold.

    An item that only the catalogue knows gets a row that says nothing but its key.
    """
    places = {key: place for place, key in enumerate(item_keys)}
    more = [key for key in dataset.item_keys.tolist() if key not in places]
    keys = [*item_keys, *more]
    if keys == dataset.item_keys.tolist():
        return dataset
    places |= {key: place for place, key in enumerate(more, len(item_keys))}
    rows = {key: row for row, key in enumerate(dataset.item_keys.tolist())}
    index = pa.array([rows.get(key) for key in keys], pa.int64())
    columns = {name: dataset.items[name].take(index) for name in dataset.items.column_names if name != "key"}
    items = pa.table({"key": pa.array(keys, pa.string()), **columns}).combine_chunks()
    numbers = np.array([places[key] for key in dataset.item_keys.tolist()], dtype=np.int64)
    return replace(
        dataset, item_keys=keys_of(items["key"]), items=items, item_ids=numbers[dataset.item_ids],
        source=dataset.source_digest,
    )  # fmt: skip


@dataclass(frozen=True)
class NewPart:
    """A log cut at ``since`` and ``cut``; it ends before ``end``."""

    everything: Dataset  # with every column that the schema reads
    schema: FeatureSchema
    since: int
    cut: int
    end: int
    reads_all: bool  # the model reads every event with its feedback, not the positive ones alone

    @property
    def positive_mask(self) -> np.ndarray:
        """(E,) of ``everything``."""
        name = self.schema.positive
        return self.everything.feedback[name].astype(bool) if name else np.ones(self.everything.num_events, bool)

    def view(self, before: int) -> View:
        """What the model reads; events before second ``before`` may be learned from, and the positive events between
        ``cut`` and ``end`` are asked for."""
        dataset, mask = self.everything, self.positive_mask
        split = _split(dataset, before, self.cut, self.end, mask)
        if not self.reads_all and self.schema.positive:
            dataset, split = dataset.keep(mask), split.keep(mask)
        if before <= self.cut:  # afterwards what was asked for is learned
            check_leaks(dataset, split)
        return View(dataset, split, self.schema)


def new_part(
    dataset: Dataset, schema: FeatureSchema, since: int, *, reads_all: bool, gate_share: float, gate_seconds: int = DAY
) -> NewPart | None:
    """The part from second ``since`` on; None where no positive event is in it.

    The newest ``gate_share`` of its positive events, at most ``gate_seconds`` of them, are those that are measured on.
    """
    if dataset.time_kind != "seconds":
        raise InputError(f"data set {dataset.name!r} has an order and no times: nobody can tell what is new in it")
    missing = [name for name in schema.columns if name not in dataset.feedback and name != "long_view"]
    if missing:
        raise InputError(
            f"data set {dataset.name!r} has no column {missing[0]!r}, which the model reads",
            allowed=f"all of {', '.join(schema.columns)}",
        )
    part = NewPart(with_long_view(dataset, schema), schema, since, since, int(dataset.times.max()) + 1, reads_all)
    times = np.sort(dataset.times[part.positive_mask & (dataset.times >= since)])
    if not len(times):
        return None
    first = times[min(len(times) - 1, int(np.floor((1 - gate_share) * len(times))))]
    return replace(part, cut=max(int(first), part.end - gate_seconds))


def neutral_rows(view: View, least: int = 30) -> tuple[EvalRows, bool]:
    """The rows that are asked for, and whether the model that served had no hand in them.

    What a model showed is what people could choose from, so a log of its own answers favours it over every other. Rows
    whose item was drawn uniformly (``uniform``), or that answer no exposure (``slot`` below 0, as
    ``sidera export-events --exposures`` writes it), favour nobody. They are taken alone where ``least`` of them are.
    """
    rows, feedback = view.split.valid, view.dataset.feedback
    neutral = np.zeros(len(rows), dtype=bool)
    if "uniform" in feedback:
        neutral |= feedback["uniform"][rows.ends].astype(bool)
    if "slot" in feedback:
        neutral |= feedback["slot"][rows.ends] < 0
    return (rows.take(neutral), True) if neutral.sum() >= least else (rows, False)


def rows_since(source: Any, since: int, replay: float, seed: int) -> Any:
    """A source of batches with the rows alone whose target came at second ``since`` or later, and of the older rows
    ``replay`` for each of these, drawn by the seed: a model that only reads news forgets the rest."""
    new = source.reading.dataset.times[source.ends] >= since
    old = np.flatnonzero(~new)
    number = min(len(old), round(replay * int(new.sum())))
    kept = new.copy()
    kept[np.random.default_rng(seed).choice(old, number, replace=False)] = True
    if not new.any():
        raise InputError(f"no event since second {since} can be learned from")
    if hasattr(source, "kept"):
        return source.kept(kept, "since", since, replay, seed)
    rows = copy.copy(source)
    for name, values in vars(source).items():
        if isinstance(values, np.ndarray) and len(values) == len(kept):
            setattr(rows, name, values[kept])
    rows.digest = config.digest([source.digest, "since", since, replay, seed])
    return rows


def _split(dataset: Dataset, before: int, cut: int, end: int, positive_mask: np.ndarray) -> Split:
    earlier = np.concatenate([[0], np.cumsum(dataset.times < before)])
    train_ends = dataset.offsets[:-1] + earlier[dataset.offsets[1:]] - earlier[dataset.offsets[:-1]]
    so_far = np.concatenate([[0], np.cumsum(positive_mask)])
    has_history = so_far[:-1] > so_far[dataset.offsets[dataset.event_users]]
    asked = np.flatnonzero(positive_mask & has_history & (dataset.times >= cut) & (dataset.times < end))
    users = dataset.event_users[asked]
    valid = EvalRows(users, dataset.offsets[users], asked, dataset.item_ids[asked])
    nothing = EvalRows(*(np.empty(0, dtype=np.int64) for _ in range(4)))
    return Split("newest", train_ends, valid, nothing)
