"""Jagged batches out of a log: packed training, prefix rows, requests, evaluation. Vectorised, no Python per event.

* ``PackedSequences``: windows of a user's training events; every position predicts the next event. Nothing is padded.
* ``PrefixRows``: one (history -> next item) row per training event but the first; batches hold rows of like length
  (sorted inside a shuffled pool), so that a model which pads wastes little.
* ``RequestRows``: one (history before a request -> the request's positives) row per request; the user part is paid for
  once however many of its items were liked. For models that read every exposure with its feedback.
* ``ExposureRows``: likewise, and every exposure is a target, to be told apart by its feedback: what rankers learn from.
* ``eval_batches``: rows of a split, longest history first.

What a row's history is, a ``data.reading.LogReading`` decides; a source decides which rows there are and their order.
Order is a function of (seed, epoch) alone: an epoch can be entered at any batch (``start``), and processes of a
distributed run take every world_size-th row of the same global batch. Batches of an epoch differ by at most one row,
so no process is left without rows at the end of an epoch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from sidera import config
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.outcomes import session_outcomes
from sidera.data.reading import LogReading, Wanted, slices
from sidera.data.split import EvalRows, Split
from sidera.data.stochastic_length import drawn_lengths, thinned

POOL_BATCHES = 50  # batches that are length-sorted together; more = less padding, less mixing


class _Rows:
    """Rows of a log whose histories end at ``ends`` (R,), taken ``batch_size`` at a time."""

    ends: np.ndarray
    batch_size: int

    @property
    def num_rows(self) -> int:
        return len(self.ends)

    def num_batches(self, epoch: int = 0) -> int:
        return -(-self.num_rows // self.batch_size)


class PackedSequences(_Rows):
    """All-positions training: inputs ``s[:-1]``, targets ``s[1:]``; ``batch_size`` counts windows.

    A user with more training events than the model reads, and one, is cut, from the newest back, into windows that
    share no input (``windows="all"``: every training event but a user's first is a target exactly once per epoch), or
    gives the newest window only (``windows="last"``, as SASRec's published code does). ``stochastic_length``: alpha of
    ``data/stochastic_length.py``, drawn again every epoch.
    """

    def __init__(
        self,
        reading: LogReading,
        split: Split,
        batch_size: int,
        seed: int = 0,
        windows: Literal["all", "last"] = "all",
        stochastic_length: float = 0.0,
    ) -> None:
        _check_size(batch_size)
        self.reading, self.batch_size, self.seed, self.alpha = reading, batch_size, seed, stochastic_length
        dataset, longest = reading.dataset, reading.max_events
        first = dataset.offsets[:-1]
        num_inputs = np.maximum(split.train_ends - first - 1, 0)  # (U,) the last training event is only a target
        num_windows = -(-num_inputs // longest)
        if windows == "last":
            num_windows = np.minimum(num_windows, 1)
        users = np.repeat(np.arange(dataset.num_users), num_windows)
        window = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)  # 0 = newest
        ends = split.train_ends[users] - 1 - window * longest
        self.user_ids, self.starts, self.ends = users, np.maximum(ends - longest, first[users]), ends
        check_targets(dataset, len(users))
        random_parts = [stochastic_length] if stochastic_length else []
        self.digest = _digest("packed", reading, split, batch_size, seed, windows, *random_parts)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        next_item = Wanted("event", np.empty(0, dtype=np.int64))
        users, starts, ends = (column.take(order) for column in (self.user_ids, self.starts, self.ends))
        lengths = drawn_lengths(
            ends - starts, self.reading.max_events, self.alpha, np.random.default_rng((self.seed, epoch, 1))
        )  # (R,)
        counts = np.add.reduceat(lengths, bounds[:-1])
        parts = np.stack([bounds[:-1], bounds[1:], counts], axis=1)
        for number, (low, high, count) in enumerate(parts[start:].tolist(), start):
            own = _cut((-lengths[low:high]).argsort(kind="stable"), rank, world_size)
            batch = self.reading.rows(
                users[low:high].take(own), ends[low:high].take(own), next_item, starts=starts[low:high].take(own),
                global_count=count,
            )  # fmt: skip
            if self.alpha:
                rng = np.random.default_rng((self.seed, epoch, 2, number, rank))
                batch = thinned(batch, lengths[low:high].take(own), rng)
            yield batch


class PrefixRows(_Rows):
    """One row per training event but a user's first: the events before it -> the event."""

    def __init__(self, reading: LogReading, split: Split, batch_size: int, seed: int = 0) -> None:
        _check_size(batch_size)
        self.reading, self.batch_size, self.seed = reading, batch_size, seed
        dataset = reading.dataset
        first = dataset.offsets[dataset.event_users]  # (E,) where the event's user begins
        position = np.arange(dataset.num_events)
        self.ends = np.flatnonzero((position > first) & (position < split.train_ends[dataset.event_users]))
        self.user_ids = dataset.event_users[self.ends]
        check_targets(dataset, len(self.ends))
        self.digest = _digest("prefix", reading, split, batch_size, seed)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        rng = np.random.default_rng((self.seed, epoch))
        lengths = self.ends - self.reading.starts(self.user_ids, self.ends)
        order, turns = _pooled_order(lengths, self.num_batches(epoch), rng)
        for turn in turns[start:]:
            rows = order[bounds[turn] : bounds[turn + 1]][::-1]  # longest first
            own = _cut(rows, rank, world_size)
            wanted = Wanted("history", self.reading.dataset.item_ids[self.ends[own]])
            yield self.reading.rows(self.user_ids[own], self.ends[own], wanted, global_count=len(rows))


class TargetRows(_Rows):
    """Rows of one or more targets each: what ``RequestRows`` and ``SessionRows`` have in common."""

    def __init__(
        self,
        reading: LogReading,
        split: Split,
        batch_size: int,
        seed: int,
        order: Literal["shuffled", "time"],
        wanted: tuple[np.ndarray, np.ndarray, np.ndarray],
        kind: Literal["request", "list", "exposure"],
        outcomes: Mapping[str, np.ndarray],
        settings: Any,
    ) -> None:
        """``wanted``: where histories end (R,), the events that are targets (G,), and where each row's begin among
        these (R+1,). ``settings``: what else decides the rows, for the digest."""
        _check_size(batch_size)
        self.reading, self.batch_size, self.seed, self.order, self.kind = reading, batch_size, seed, order, kind
        self.outcomes = {name: values.astype(np.float32) for name, values in outcomes.items()}
        self.ends, self.targets, self.target_bounds = wanted
        self.user_ids = reading.dataset.event_users[self.ends]
        self.digest = _digest(kind, reading, split, batch_size, seed, order, sorted(self.outcomes), settings)

    @property
    def starts(self) -> np.ndarray:
        """(R,) the oldest event that is read of each history."""
        return self.reading.starts(self.user_ids, self.ends)

    def between(self, low: float, high: float) -> Self:
        """The rows whose request was made from second ``low`` to before second ``high``; their histories stay whole."""
        moments = self.reading.dataset.times[self.ends]
        return self.kept((moments >= low) & (moments < high), low, high)

    def kept(self, kept_mask: np.ndarray, *why: Any) -> Self:
        """The rows of a mask (R,); ``why`` it is this one becomes part of the digest."""
        counts = np.diff(self.target_bounds)
        check_targets(self.reading.dataset, int(kept_mask.sum()))
        rows = copy.copy(self)
        rows.ends, rows.user_ids = self.ends[kept_mask], self.user_ids[kept_mask]
        rows.targets = self.targets[np.repeat(kept_mask, counts)]
        rows.target_bounds = np.concatenate([[0], np.cumsum(counts[kept_mask])])
        rows.digest = config.digest([self.digest, *why])
        return rows

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        starts = self.starts
        shortness = starts - self.ends  # (R,) ascending: longest first
        if self.order == "time":
            order = np.argsort(self.reading.dataset.times[self.ends], kind="stable")
            turns = np.arange(self.num_batches(epoch))
        else:
            order, turns = _pooled_order(-shortness, self.num_batches(epoch), np.random.default_rng((self.seed, epoch)))
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        counts = np.diff(self.target_bounds)
        for turn in turns[start:]:
            rows = order[bounds[turn] : bounds[turn + 1]]
            own = _cut(rows.take(shortness.take(rows).argsort(kind="stable")), rank, world_size)
            yield self._batch(own, starts.take(own), int(counts.take(rows).sum()))

    def _batch(self, rows: np.ndarray, starts: np.ndarray, global_count: int) -> Batch:
        first = self.target_bounds.take(rows)
        places, offsets = slices(first, self.target_bounds[1:].take(rows) - first)
        targets = self.targets.take(places)  # (G,)
        outcomes = {name: values.take(targets) for name, values in self.outcomes.items()}
        feedback = self.reading.feedback(targets) | outcomes
        wanted = Wanted(self.kind, self.reading.dataset.item_ids.take(targets), offsets, feedback)
        return self.reading.rows(
            self.user_ids.take(rows), self.ends.take(rows), wanted, starts=starts, global_count=global_count
        )


class RequestRows(TargetRows):
    """One row per request with a target: the newest events before it -> its targets.

    ``target_mask`` (E,): events that may be targets, by default the positive ones.

    Events of one user with equal ``request`` are one request, shown together: none of them is in the others' history.
    A log without that column has a request per event. ``order="time"`` gives the rows as they happened, once: what
    streaming training sees (OneRec-V2); the epoch then changes nothing.
    """

    def __init__(
        self,
        reading: LogReading,
        split: Split,
        batch_size: int,
        seed: int = 0,
        order: Literal["shuffled", "time"] = "shuffled",
        target_mask: np.ndarray | None = None,
    ) -> None:
        if target_mask is None:
            target_mask = positive_mask(reading.dataset, reading.reading.schema)
        wanted, which = _by_request(reading.dataset, split, target_mask)
        super().__init__(reading, split, batch_size, seed, order, wanted, "request", {}, which)


class ExposureRows(TargetRows):
    """One row per request -> all that it showed, with what came of each.

    ``target_mask`` (E,): exposures that may be targets, by default all. ``outcomes``: of the session
    (``data.outcomes``), known only afterwards and therefore labels of targets and columns of no history.
    """

    def __init__(
        self,
        reading: LogReading,
        split: Split,
        batch_size: int,
        seed: int = 0,
        target_mask: np.ndarray | None = None,
        outcomes: Sequence[str] = (),
    ) -> None:
        dataset = reading.dataset
        mask = np.ones(dataset.num_events, dtype=bool) if target_mask is None else target_mask
        wanted, which = _by_request(dataset, split, mask)
        found = session_outcomes(dataset, outcomes, split)
        super().__init__(reading, split, batch_size, seed, "shuffled", wanted, "exposure", found, which)


def _by_request(
    dataset: Dataset, split: Split, target_mask: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], str]:
    """The targets by request, as TargetRows takes them, and a digest of which they are."""
    begins = request_starts(dataset)  # (E,) first event of each event's request
    has_history = begins > dataset.offsets[dataset.event_users]
    positions = np.flatnonzero(trained_mask(dataset, split) & has_history & target_mask)
    check_targets(dataset, len(positions))
    ends, first = np.unique(begins[positions], return_index=True)
    return (ends, positions, np.append(first, len(positions))), hashlib.sha256(positions.tobytes()).hexdigest()


def trained_mask(dataset: Dataset, split: Split) -> np.ndarray:
    """(E,) events that may be learned from."""
    return np.arange(dataset.num_events) < split.train_ends[dataset.event_users]


def positive_mask(dataset: Dataset, schema: FeatureSchema) -> np.ndarray:
    """(E,) events worth recommending again; all where the schema names no such label."""
    if not schema.positive:
        return np.ones(dataset.num_events, dtype=bool)
    return dataset.feedback[schema.positive].astype(bool)


def request_starts(dataset: Dataset) -> np.ndarray:
    """(E,) int64: the position of the first event of each event's request."""
    position = np.arange(dataset.num_events)
    if "request" not in dataset.feedback:
        return position
    users, request = dataset.event_users, dataset.feedback["request"]
    new = np.ones(dataset.num_events, dtype=bool)
    new[1:] = (users[1:] != users[:-1]) | (request[1:] != request[:-1])
    return np.maximum.accumulate(np.where(new, position, 0))


def eval_batches(
    reading: LogReading, rows: EvalRows, batch_size: int, *, whole: bool = False
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row indices, Batch) until every row was there once, longest history first.

    ``whole``: histories are not cut to what the model reads, for a caller that must know every item that was seen.
    """
    _check_size(batch_size)
    starts = rows.starts if whole else np.maximum(rows.starts, rows.ends - reading.max_events)
    order = np.argsort(starts - rows.ends, kind="stable")  # longest first: a too large batch fails at once, not late
    for low in range(0, len(order), batch_size):
        index = order[low : low + batch_size]
        wanted = Wanted("history", rows.target_ids[index])
        yield (
            index,
            reading.rows(
                rows.user_ids[index],
                rows.ends[index],
                wanted,
                starts=starts[index],
                global_count=len(index),
                whole=whole,
            ),
        )


def _digest(kind: str, reading: LogReading, split: Split, *settings: Any) -> str:
    """Names the data and the order of a source's batches, so that no run is resumed on other ones."""
    identity = [kind, reading.dataset.digest, split.name, split.train_ends.tolist(), reading.identity, *settings]
    return config.digest(identity)


def _even_bounds(num_rows: int, num_batches: int) -> np.ndarray:
    """(num_batches+1,) cut points of batches whose sizes differ by at most one."""
    return np.arange(num_batches + 1) * num_rows // num_batches


def _pooled_order(lengths: np.ndarray, num_batches: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows shuffled, then sorted by length inside pools, and the turn of each batch, shuffled too: or every pool would
    run from short to long."""
    order = rng.permutation(len(lengths))
    bounds = _even_bounds(len(lengths), num_batches)
    pool = np.searchsorted(bounds[::POOL_BATCHES], np.arange(len(lengths)), side="right")
    order = order[np.lexsort((lengths[order], pool))]
    return order, rng.permutation(num_batches)


def _cut(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This process's rows; the rows come sorted by length, so a stride gives each process like work."""
    if len(rows) < world_size:
        raise InputError(
            f"a batch of {len(rows)} rows cannot be cut among {world_size} processes",
            fix="use fewer processes or a larger batch_size",
        )
    return rows[rank::world_size]


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}", allowed="1 or more")


def check_targets(dataset: Dataset, num_rows: int) -> None:
    """InputError when there is nothing to train on."""
    if not num_rows:
        raise InputError(
            f"data set {dataset.name!r} has nothing to train on: no user has two training events",
            fix="give a log in which users have 4 or more events (leave-one-out keeps the last two for evaluation)",
        )
