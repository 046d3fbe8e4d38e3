"""The one way from what users did to what a model reads.

    reading = Reading(schema, items, model.reads)
    batch = reading.over(dataset).rows(user_ids, ends)      # training, evaluation, alignment: positions of a log
    batch = reading.batch(item_ids, offsets, ...)           # HTTP, the store, the simulator: events at hand

A model class declares what it ``Reads``: all events with what came of them, or the positive ones alone; how many of the
newest; whether representatives of whole histories. Every batch of the package is built here, so that what was trained
on, what is measured and what is served are read alike. Models never cut a history.

A history ends before the request that it is read for: events of that request are not in it.

Shape legend: T events of all histories · B histories · G targets of all histories · E events of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from sidera.batch import Batch, Events, Lifelong, Reads, Requests, TargetKind, Targets
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable


class LogRepresentatives(Protocol):
    """Representatives of the histories of a log; ``store.log_representatives`` has them."""

    identity: str  # what decides its answers, beside the data set

    def __call__(self, user_ids: np.ndarray, ends: np.ndarray) -> Lifelong:
        """Of the events of each user (B,) before a position of the log (B,); ``items`` holds dense ids."""


@dataclass(frozen=True)
class Wanted:
    """Targets of the histories of a batch, by dense id."""

    kind: TargetKind
    item_ids: np.ndarray  # (G,)
    offsets: np.ndarray | None = None  # (B+1,); None: one a history
    feedback: Mapping[str, np.ndarray] = field(default_factory=dict)  # column -> (G,)


@dataclass(frozen=True, eq=False)
class Reading:
    """Builds the batches of one model over one table of items."""

    schema: FeatureSchema
    items: ItemTable
    reads: Reads
    representatives: Callable[[Events], Lifelong] | None = None  # of whole histories; ``items`` of both: dense ids

    def over(self, dataset: Dataset, representatives: LogRepresentatives | None = None) -> LogReading:
        """Read this data set, whose ids are rows of ``items``."""
        return LogReading(self, dataset, representatives)

    def batch(
        self,
        item_ids: np.ndarray,
        offsets: np.ndarray,
        *,
        times: np.ndarray | None = None,
        feedback: Mapping[str, np.ndarray] | None = None,
        requests: Requests | None = None,
        wanted: Wanted | None = None,
        lifelong: Lifelong | None = None,
        features: Mapping[str, np.ndarray] | None = None,
        global_count: int | None = None,
        whole: bool = False,
    ) -> Batch:
        """Histories as they stand here, oldest event first -> a Batch over the items that they, the targets and the
        representatives name.

        ``features``: of events, (T, ...). ``lifelong.items`` holds dense ids. ``whole``: nothing is left out yet;
        :meth:`cut` does that.
        """
        feedback, features = feedback or {}, features or {}
        if not whole:
            if self.reads.lifelong is not None and lifelong is None and self.representatives is not None:
                when = None if times is None else torch.from_numpy(times)
                events = Events(torch.from_numpy(item_ids), torch.from_numpy(offsets), when, _tensors(feedback))
                lifelong = self.representatives(replace(events, features=_tensors(features)))
            chosen = self._chosen(offsets, feedback.get(self.schema.positive))
            if chosen is not None:
                places, offsets = chosen
                item_ids, times = item_ids.take(places), None if times is None else times.take(places)
                feedback = {name: values.take(places, 0) for name, values in feedback.items()}
                features = {name: values.take(places, 0) for name, values in features.items()}
            if not self.reads.feedback:
                feedback, features = {}, {}
        columns = [item_ids]
        if wanted is not None:
            columns.append(wanted.item_ids)
        if lifelong is not None:
            columns.append(lifelong.items.numpy())
        items, positions = self.items.distinct(*columns)
        targets = None
        if wanted is not None:
            ends = np.arange(len(wanted.item_ids) + 1) if wanted.offsets is None else wanted.offsets
            targets = Targets(wanted.kind, positions[1], torch.from_numpy(ends), _tensors(wanted.feedback))
        when = None if times is None else torch.from_numpy(times)
        return Batch(
            events=Events(positions[0], torch.from_numpy(offsets), when, _tensors(feedback), _tensors(features)),
            items=items,
            requests=requests or Requests(),
            targets=targets,
            lifelong=None if lifelong is None else replace(lifelong, items=positions[-1]),
            global_count=global_count,
        )

    def cut(self, batch: Batch) -> Batch:
        """What the model reads of a batch of whole histories, which may lie on any device."""
        lifelong = batch.lifelong
        if self.reads.lifelong is not None and lifelong is None and self.representatives is not None:
            found = self.representatives(replace(batch.events.to("cpu"), items=batch.item_ids.cpu()))
            ids = batch.items.ids
            lifelong = replace(found.to(ids.device), items=torch.searchsorted(ids, found.items.to(ids.device)))
        events = self.select(batch.events)
        if events is batch.events and lifelong is batch.lifelong:
            return batch
        return replace(batch, events=events, lifelong=lifelong, targets=None)

    def select(self, events: Events) -> Events:
        """The events that the model reads, on any device."""
        positive = events.feedback.get(self.schema.positive)
        chosen = self._chosen(events.offsets.cpu().numpy(), None if positive is None else positive.cpu().numpy())
        if not self.reads.feedback and events.feedback:
            events = replace(events, feedback={}, features={})
        if chosen is None:
            return events
        device = events.offsets.device
        places, offsets = (torch.from_numpy(part).to(device) for part in chosen)
        return replace(events._changed(lambda column: column[places], skip="offsets"), offsets=offsets)

    def _chosen(self, offsets: np.ndarray, positive: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Which events are read: the positive ones or all, the newest, of the older ones the positive. Their places,
        and the offsets among them; None: every event."""
        reads, places = self.reads, None
        if not reads.feedback and positive is not None:  # no label: all are positive
            places = np.flatnonzero(positive > 0)
            offsets = places.searchsorted(offsets)
        longest = (offsets[1:] - offsets[:-1]).max(initial=0)  # torch takes ten times as long for so few numbers
        if longest <= reads.untouched:
            return None if places is None else (places, offsets)
        starts = np.maximum(offsets[:-1], offsets[1:] - reads.max_events)
        newest, offsets = slices(starts, offsets[1:] - starts)
        places = newest if places is None else places.take(newest)
        if reads.recent is not None and positive is not None:
            older = _older(offsets, reads.recent)
            left_out = older[~(positive.take(places.take(older)) > 0)]
            places, offsets = np.delete(places, left_out), offsets - left_out.searchsorted(offsets)
        return places, offsets


class LogReading:
    """A data set read for one model: columns as numbers and features encoded, gathered into batches."""

    def __init__(self, reading: Reading, dataset: Dataset, representatives: LogRepresentatives | None = None) -> None:
        """InputError where the log lacks a feedback column that the model reads."""
        self.reading, self.dataset, self.representatives = reading, dataset, representatives
        schema, feedback = reading.schema, reading.reads.feedback
        if reading.items.num_items < dataset.num_items:
            raise InputError(
                f"data set {dataset.name!r} has {dataset.num_items:,} items, the catalogue {reading.items.num_items:,}",
                fix="read it with the catalogue that was built from it",
            )
        for name in schema.columns if feedback else ():
            if name not in dataset.feedback:
                known = ", ".join(dataset.feedback) or "none"
                raise InputError(f"the log has no feedback column {name!r}", allowed=f"those it has: {known}")
        self.columns = {
            name: np.asarray(dataset.feedback[name], dtype=np.float32) for name in (schema.columns if feedback else ())
        }
        self.of_users = schema.of_log(dataset, "user") if feedback else {}
        self.of_requests = schema.of_log(dataset, "request") if feedback else {}
        self.of_events = schema.of_log(dataset, "event") if feedback else {}

    @property
    def max_events(self) -> int:
        return self.reading.reads.max_events

    @property
    def identity(self) -> list[Any]:
        """What decides the batches beside the data set and the rows."""
        reads = self.reading.reads
        named = [reads.max_events] if not reads.feedback else [reads.max_events, self.reading.schema.to_json()]
        return named if self.representatives is None else [*named, self.representatives.identity]

    def starts(self, user_ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(B,) the oldest event that is read of each history."""
        return np.maximum(self.dataset.offsets.take(user_ids), ends - self.max_events)

    def rows(
        self,
        user_ids: np.ndarray,
        ends: np.ndarray,
        wanted: Wanted | None = None,
        *,
        starts: np.ndarray | None = None,
        global_count: int | None = None,
        whole: bool = False,
    ) -> Batch:
        """Row b: the newest events of user ``user_ids[b]`` before position ``ends[b]`` of the log.

        ``starts`` (B,): the oldest event of each row, by default the oldest that is read; none is older than that,
        unless the history is ``whole``: not cut to what the model reads. ``as_of`` and the features of a
        request are those of the event at ``ends``: they are known when the question is asked.
        """
        dataset = self.dataset
        starts = self.starts(user_ids, ends) if starts is None else starts
        events, offsets = slices(starts, ends - starts)  # (T,) positions in the log, (B+1,)
        if not whole:  # before the columns are gathered
            events, offsets = self._without_older(events, offsets)
        if wanted is not None and wanted.kind == "event":  # every event's target is the next one of the log
            wanted = Wanted("event", dataset.item_ids[1:].take(events), offsets)
        return self.reading.batch(
            dataset.item_ids.take(events),
            offsets,
            times=dataset.times.take(events),
            feedback=self.feedback(events),
            requests=Requests(
                torch.from_numpy(user_ids),
                torch.from_numpy(dataset.times.take(ends)),
                _tensors(
                    {name: values.take(user_ids, 0) for name, values in self.of_users.items()}
                    | {name: values.take(ends, 0) for name, values in self.of_requests.items()}
                ),
            ),
            wanted=wanted,
            lifelong=None if self.representatives is None else self.representatives(user_ids, ends),
            features={name: values.take(events, 0) for name, values in self.of_events.items()},
            global_count=global_count,
            whole=whole or self.reading.reads.lifelong is None,  # it is cut already
        )

    def _without_older(self, events: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the log without those that :meth:`Reading.select` leaves out of the older events."""
        recent, column = self.reading.reads.recent, self.columns.get(self.reading.schema.positive)
        if recent is None or column is None or (offsets[1:] - offsets[:-1]).max(initial=0) <= recent:
            return events, offsets
        older = _older(offsets, recent)
        left_out = older[~(column.take(events.take(older)) > 0)]
        if not len(left_out):
            return events, offsets
        return np.delete(events, left_out), offsets - left_out.searchsorted(offsets)

    def feedback(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """column -> (n,) of the events at these positions of the log."""
        return {name: values.take(positions) for name, values in self.columns.items()}


def slices(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T,) of slices (B,) of a log one after the other, and the offsets (B+1,) of each among them."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    lengths.cumsum(out=offsets[1:])
    positions = (starts - offsets[:-1]).repeat(lengths)
    positions += np.arange(len(positions))
    return positions, offsets


def _older(offsets: np.ndarray, recent: int) -> np.ndarray:
    """(n,) ascending positions of the events that are not among the newest ``recent`` of their history."""
    return slices(offsets[:-1], np.maximum(offsets[1:] - offsets[:-1] - recent, 0))[0]


def _tensors(columns: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in columns.items()}
