"""Jagged batches out of a Dataset: packed training, prefix rows, evaluation. Vectorised, no Python per event.

* ``PackedSequences``: windows of a user's training events; every position predicts the next event. Nothing is padded.
* ``PrefixRows``: one (history -> next item) row per training event but the first; batches hold rows of like length
  (sorted inside a shuffled pool), so that a model which pads wastes little.
* ``RequestRows``: one (history before a request -> the request's positives) row per request; the user part is paid for
  once however many of its items were liked. For models that read every exposure with its feedback. With
  ``targets="all"`` every exposure is a target, to be told apart by ``target_feedback``: what rankers learn from.
* ``eval_batches``: rows of a split, longest history first.

Order is a function of (seed, epoch) alone: an epoch can be entered at any batch (``start``), and processes of a
distributed run take every world_size-th row of the same global batch. Batches of an epoch differ by at most one row,
so no process is left without rows at the end of an epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sidera import config
from sidera.core import Batch, InputError, Lifelong
from sidera.data.config import View
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.outcomes import session_outcomes
from sidera.data.split import EvalRows, Split

POOL_BATCHES = 50  # batches that are length-sorted together; more = less padding, less mixing


class PackedSequences:
    """All-positions training: inputs ``s[:-1]``, targets ``s[1:]``; ``batch_size`` counts windows.

    A user with more than ``max_history + 1`` training events is cut, from the newest back, into windows that share no
    input (``windows="all"``: every training event but a user's first is a target exactly once per epoch), or gives
    the newest window only (``windows="last"``, as SASRec's published code does).
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        max_history: int,
        batch_size: int,
        seed: int = 0,
        windows: Literal["all", "last"] = "all",
    ) -> None:
        _check_sizes(max_history, batch_size)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        first = dataset.offsets[:-1]
        num_inputs = np.maximum(split.train_ends - first - 1, 0)  # (U,) the last training event is only a target
        num_windows = -(-num_inputs // max_history)
        if windows == "last":
            num_windows = np.minimum(num_windows, 1)
        users = np.repeat(np.arange(dataset.num_users), num_windows)
        place = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)  # 0 = newest
        ends = split.train_ends[users] - 1 - place * max_history
        self.user_ids, self.starts, self.ends = users, np.maximum(ends - max_history, first[users]), ends
        check_targets(dataset, len(users))
        self.digest = _digest("packed", dataset, split, max_history, batch_size, seed, windows)

    @classmethod
    def of(cls, model: Any, view: View, batch_size: int, seed: int = 0, reader: Reader | None = None) -> Self:
        """What ``model`` trains on."""
        return cls(view.dataset, view.split, model.config.max_history, batch_size, seed)

    @property
    def num_rows(self) -> int:
        return len(self.user_ids)

    def num_batches(self, epoch: int = 0) -> int:
        return -(-self.num_rows // self.batch_size)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        for index in range(start, len(bounds) - 1):
            rows = order[bounds[index] : bounds[index + 1]]
            lengths = self.ends[rows] - self.starts[rows]
            rows = rows[np.argsort(-lengths, kind="stable")]
            mine = _cut(rows, rank, world_size)
            yield _batch(
                self.dataset,
                self.user_ids[mine],
                self.starts[mine],
                self.ends[mine],
                target_ids=None,
                global_count=int(lengths.sum()),
            )


class PrefixRows:
    """One row per training event but a user's first: the ``max_history`` events before it -> the event."""

    def __init__(self, dataset: Dataset, split: Split, max_history: int, batch_size: int, seed: int = 0) -> None:
        _check_sizes(max_history, batch_size)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        first = dataset.offsets[dataset.event_users]  # (E,) where the event's user begins
        position = np.arange(dataset.num_events)
        self.ends = np.flatnonzero((position > first) & (position < split.train_ends[dataset.event_users]))
        self.user_ids = dataset.event_users[self.ends]
        self.starts = np.maximum(first[self.ends], self.ends - max_history)
        check_targets(dataset, len(self.ends))
        self.digest = _digest("prefix", dataset, split, max_history, batch_size, seed)

    @classmethod
    def of(cls, model: Any, view: View, batch_size: int, seed: int = 0, reader: Reader | None = None) -> Self:
        """What ``model`` trains on."""
        return cls(view.dataset, view.split, model.config.max_history, batch_size, seed)

    @property
    def num_rows(self) -> int:
        return len(self.ends)

    def num_batches(self, epoch: int = 0) -> int:
        return -(-self.num_rows // self.batch_size)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        rng = np.random.default_rng((self.seed, epoch))
        order, turns = _pooled_order(self.ends - self.starts, self.num_batches(epoch), rng)
        for turn in turns[start:]:
            rows = order[bounds[turn] : bounds[turn + 1]][::-1]  # longest first
            mine = _cut(rows, rank, world_size)
            ends = self.ends[mine]
            yield _batch(
                self.dataset,
                self.user_ids[mine],
                self.starts[mine],
                ends,
                target_ids=self.dataset.item_ids[ends],
                global_count=len(rows),
            )


class LifelongReader(Protocol):
    """Representatives of whole histories; ``store.log_events`` has one."""

    identity: str  # what decides its answers, beside the data set

    def __call__(self, user_ids: np.ndarray, ends: np.ndarray) -> Lifelong:
        """Of the events of each user (B,) before a position of the log (B,)."""


class Reader:
    """Feedback columns and profiles of a data set, as its schema reads them, ready to be gathered into batches; with a
    ``lifelong`` reader the representatives of the whole histories, too."""

    def __init__(self, dataset: Dataset, schema: FeatureSchema, lifelong: LifelongReader | None = None) -> None:
        self.lifelong = lifelong
        for name in schema.columns:
            if name not in dataset.feedback:
                there = ", ".join(dataset.feedback) or "none"
                raise InputError(f"the log has no feedback column {name!r}", allowed=f"those it has: {there}")
        self.columns = {name: np.asarray(dataset.feedback[name], dtype=np.float32) for name in schema.columns}
        self.profiles = schema.profile_categories(dataset.users)

    def events(self, places: np.ndarray) -> dict[str, Tensor]:
        """column -> (len(places),) of the events at these positions."""
        return {name: torch.from_numpy(values[places]) for name, values in self.columns.items()}

    def users(self, user_ids: np.ndarray) -> dict[str, Tensor]:
        """field -> (B,)"""
        return {name: torch.from_numpy(values[user_ids]) for name, values in self.profiles.items()}


class RequestRows:
    """One row per request with a positive: the newest ``max_history`` events before it -> its positives.

    ``targets="all"``: one row per request, and its targets are all that it showed. ``outcomes``: more columns (E,) for
    ``target_feedback``, known only afterwards and therefore of no history (``data.sessions``). ``lifelong`` adds
    representatives of *all* events before the request.

    Events of one user with equal ``request`` are one request, shown together: none of them is in the others' history.
    A log without that column has a request per event. ``order="time"`` gives the rows as they happened, once: what
    streaming training sees (OneRec-V2); the epoch then changes nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        schema: FeatureSchema,
        max_history: int,
        batch_size: int,
        seed: int = 0,
        order: Literal["shuffled", "time"] = "shuffled",
        targets: Literal["positive", "all"] = "positive",
        outcomes: Mapping[str, np.ndarray] | None = None,
        lifelong: LifelongReader | None = None,
    ) -> None:
        _check_sizes(max_history, batch_size)
        self.dataset, self.batch_size, self.seed, self.order = dataset, batch_size, seed, order
        self.reader, self.targets = Reader(dataset, schema, lifelong), targets
        self.outcomes = {name: values.astype(np.float32) for name, values in (outcomes or {}).items()}
        self.ends, self.target_places, self.target_bounds = self.rows(dataset, split, schema)
        self.user_ids = dataset.event_users[self.ends]
        self.starts = np.maximum(dataset.offsets[self.user_ids], self.ends - max_history)
        settings = (max_history, batch_size, seed, order, targets, sorted(self.outcomes), schema.to_json())
        more = () if lifelong is None else (lifelong.identity,)
        self.digest = _digest("requests", dataset, split, *settings, *self.settings(), *more)

    @classmethod
    def of(cls, model: Any, view: View, batch_size: int, seed: int = 0, reader: Reader | None = None) -> Self:
        """What ``model`` trains on."""
        lifelong = reader.lifelong if reader else None
        history = model.config.max_history
        return cls(view.dataset, view.split, view.schema, history, batch_size, seed, lifelong=lifelong)

    def rows(self, dataset: Dataset, split: Split, schema: FeatureSchema) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where histories end (R,), the events that are targets (G,), and where each row's begin among these (R+1,)."""
        begins = request_starts(dataset)  # (E,) first event of each event's request
        has_history = begins > dataset.offsets[dataset.event_users]
        wanted = trained_mask(dataset, split) & has_history
        places = np.flatnonzero(wanted & positive_mask(dataset, schema) if self.targets == "positive" else wanted)
        check_targets(dataset, len(places))
        ends, first = np.unique(begins[places], return_index=True)
        return ends, places, np.append(first, len(places))

    def settings(self) -> tuple[Any, ...]:
        """What else decides the rows: part of the digest."""
        return ()

    def between(self, low: float, high: float) -> RequestRows:
        """The rows whose request was made from second ``low`` to before second ``high``; their histories stay whole."""
        moments = self.dataset.times[self.ends]
        return self.kept((moments >= low) & (moments < high), low, high)

    def kept(self, kept_mask: np.ndarray, *why: Any) -> RequestRows:
        """The rows of a mask (R,); ``why`` it is this one becomes part of the digest."""
        counts = np.diff(self.target_bounds)
        check_targets(self.dataset, int(kept_mask.sum()))
        rows = copy.copy(self)
        rows.ends, rows.starts, rows.user_ids = self.ends[kept_mask], self.starts[kept_mask], self.user_ids[kept_mask]
        rows.target_places = self.target_places[np.repeat(kept_mask, counts)]
        rows.target_bounds = np.concatenate([[0], np.cumsum(counts[kept_mask])])
        rows.digest = config.digest([self.digest, *why])
        return rows

    @property
    def num_rows(self) -> int:
        return len(self.ends)

    def num_batches(self, epoch: int = 0) -> int:
        return -(-self.num_rows // self.batch_size)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        lengths = self.ends - self.starts
        if self.order == "time":
            order = np.argsort(self.dataset.times[self.ends], kind="stable")
            turns = np.arange(self.num_batches(epoch))
        else:
            order, turns = _pooled_order(lengths, self.num_batches(epoch), np.random.default_rng((self.seed, epoch)))
        bounds = _even_bounds(self.num_rows, self.num_batches(epoch))
        counts = np.diff(self.target_bounds)
        for turn in turns[start:]:
            rows = order[bounds[turn] : bounds[turn + 1]]
            rows = rows[np.argsort(-lengths[rows], kind="stable")]  # longest first
            yield self._batch(_cut(rows, rank, world_size), int(counts[rows].sum()))

    def _batch(self, rows: np.ndarray, global_count: int) -> Batch:
        first, counts = self.target_bounds[rows], self.target_bounds[rows + 1] - self.target_bounds[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])  # (B+1,)
        targets = self.target_places[np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1])]  # (G,)
        batch = _batch(
            self.dataset, self.user_ids[rows], self.starts[rows], self.ends[rows],
            self.dataset.item_ids[targets], global_count, self.reader,
        )  # fmt: skip
        feedback = self.reader.events(targets)
        feedback |= {name: torch.from_numpy(values[targets]) for name, values in self.outcomes.items()}
        return replace(batch, target_offsets=torch.from_numpy(offsets), target_feedback=feedback)


class ExposureRows(RequestRows):
    """One row per request -> all that it showed, with what came of it: what rankers learn from."""

    @classmethod
    def of(cls, model: Any, view: View, batch_size: int, seed: int = 0, reader: Reader | None = None) -> Self:
        """What ``model`` trains on; with the outcomes of sessions that its config names."""
        outcomes = session_outcomes(view.dataset, getattr(model.config, "outcomes", ()))
        history = model.config.max_history
        return cls(
            view.dataset, view.split, view.schema, history, batch_size, seed, targets="all", outcomes=outcomes
        )


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
    dataset: Dataset, rows: EvalRows, max_history: int, batch_size: int, reader: Reader | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row indices, Batch) until every row was there once, longest history first; only the newest events are read.

    With a ``reader`` the batches carry feedback and profiles.
    """
    _check_sizes(max_history, batch_size)
    starts = np.maximum(rows.starts, rows.ends - max_history)
    order = np.argsort(starts - rows.ends, kind="stable")  # longest first: a too large batch fails at once, not late
    for low in range(0, len(order), batch_size):
        index = order[low : low + batch_size]
        targets = rows.target_ids[index]
        yield index, _batch(dataset, rows.user_ids[index], starts[index], rows.ends[index], targets, len(index), reader)


def _batch(
    dataset: Dataset,
    user_ids: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    target_ids: np.ndarray | None,
    global_count: int,
    reader: Reader | None = None,
) -> Batch:
    """Gather slices; ``target_ids`` None means that every position predicts the next event.

    ``as_of`` is the time of the event at ``ends``: when the question was asked, which is known then.
    """
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])  # (B+1,)
    events = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])  # (T,) positions in the data set
    if target_ids is None:
        target_ids = dataset.item_ids[events + 1]
    return Batch(
        item_ids=torch.from_numpy(dataset.item_ids[events]),
        offsets=torch.from_numpy(offsets),
        target_ids=torch.from_numpy(target_ids),
        times=torch.from_numpy(dataset.times[events]),
        user_ids=torch.from_numpy(user_ids),
        global_count=global_count,
        as_of=torch.from_numpy(dataset.times[ends]),
        feedback=reader.events(events) if reader else {},
        profiles=reader.users(user_ids) if reader else {},
        lifelong=reader.lifelong(user_ids, ends) if reader and reader.lifelong else None,
    )


def _digest(kind: str, dataset: Dataset, split: Split, *settings: Any) -> str:
    """Names the data and the order of a source's batches, so that no run is resumed on other ones."""
    return config.digest([kind, dataset.digest, split.name, split.train_ends.tolist(), *settings])


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


def _check_sizes(max_history: int, batch_size: int) -> None:
    for name, value in (("max_history", max_history), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} = {value}", allowed="1 or more")


def check_targets(dataset: Dataset, num_rows: int) -> None:
    """InputError when there is nothing to train on."""
    if not num_rows:
        raise InputError(
            f"data set {dataset.name!r} has nothing to train on: no user has two training events",
            fix="give a log in which users have 4 or more events (leave-one-out keeps the last two for evaluation)",
        )
