"""Lifelong histories: up to 100,000 events of one user as at most 2,000 representatives, kept up event by event.

OneRec technical report, 2.2: recursive k-means of a user's events in the item vector space, floor(cuberoot(|D|))
clusters a split, until a set has at most M events. Of each cluster the categorical features (item, labels) are those of
the event nearest to the centre; time, watch time and duration are means. A QFormer in the model reads these tokens
(``nn/qformer.py``).

    history = LifelongHistory(vectors)                                         # (N, D) of the items
    history.append(Events.of(item_ids, times, labels, watch_time, duration))   # one event or 100,000
    tokens = history.representatives()                                         # ordered by mean time

The report does not print M. Here M is ``leaf_size`` for a full history and shrinks with it, so that a user with 5,000
events has about as many representatives as one with 100,000, not one in fifty; up to ``max_representatives`` events are
kept as they are. docs/evidence/lifelong.md has the figures.

With ``chunk`` above 0 events enter the tree by whole chunks, each when the chunk behind it is whole too; until then
they are tokens of their own. The tokens are then a function of the events and their order alone, whoever appended them
and in how many calls: what a model reads in training and in serving is the same. A chunk that waits is clustered ahead
of time by another thread (``background``), on a copy, so that no event waits for a rebuild.

Trap: appending never moves the centres of old cells, so a tree that has grown a lot is worse than one built today. When
as many events came as there were at the last build (``rebuild_due``), call ``rebuild()``. With a ``chunk`` the chunk
that makes it due rebuilds.

Not thread-safe: ``store_representatives`` holds a lock for each user.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.config import check_value, later
from sidera.core import InputError
from sidera.data.representatives import TOKEN
from sidera.store.cluster_tree import ClusterTree
from sidera.store.events import COLUMNS, DTYPES, ClusteredRing, Events, concatenate
from sidera.store.splitting import Vectors
from sidera.store.statistics import statistics

LARGEST = 2**30  # events; slots are 32-bit


@dataclass(frozen=True)
class LifelongConfig:
    """How one history is represented."""

    max_events: int = 100_000  # the oldest leave beyond
    max_representatives: int = 2000
    leaf_size: int = 100  # M at max_events; a history of n events has M = floor(leaf_size * n / max_events)
    iterations: int = 6  # of k-means in a split
    chunk: int = later(0)  # events that enter the tree together; 0: each call's, and rebuilding is the caller's affair

    @property
    def max_clusters(self) -> int:
        """Clusters of the tree: with the events that wait, less than two chunks, ``max_representatives``."""
        return self.max_representatives - 2 * self.chunk

    def num_clustered(self, num_events: int) -> int:
        """How many of so many events have entered the tree by chunks."""
        return max(0, num_events // self.chunk - 1) * self.chunk

    def first_token(self, num_events: int) -> int | None:
        """Where the tokens begin of so many events that are all their own tokens; None where some are clustered."""
        clustered = self.num_clustered(num_events)
        return max(0, clustered - self.max_events) if min(clustered, self.max_events) <= self.max_clusters else None

    def check_chunk(self) -> None:
        """InputError unless events enter by chunks, without which two readers of the same events do not agree."""
        if not self.chunk:
            raise InputError("[lifelong] chunk = 0", allowed="1 or more", fix="training needs whole chunks")

    def __post_init__(self) -> None:
        limits = {"max_events": LARGEST, "max_representatives": LARGEST, "leaf_size": LARGEST, "iterations": 1000}
        for name, high in limits.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high
            check_value("[lifelong]", name, value, good, f"whole numbers from 1 to {high}")
        most = min((self.max_representatives - 1) // 2, self.max_events)
        good = isinstance(self.chunk, int) and not isinstance(self.chunk, bool) and 0 <= self.chunk <= most
        check_value("[lifelong]", "chunk", self.chunk, good, f"whole numbers from 0 to {most}, for less than two wait")


class Clusters:
    """The clustered part of one history: events in order of arrival, and the tree over them.

    :meth:`grown` makes the next state on a copy while this one is being read.
    """

    def __init__(self, vectors: Vectors, config: LifelongConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.ring = ClusteredRing(config.max_events)
        self.tree = ClusterTree(self.ring, vectors, config.max_clusters, config.iterations, seed)
        self.num_evicted = 0  # events that came and were let go beyond the limit
        self.built_size = 0  # events when the tree was last built as a whole
        self.arrived = 0  # since then

    @property
    def is_flat(self) -> bool:
        """True for as long as every event is its own representative."""
        return len(self.ring) <= self.config.max_clusters

    @property
    def max_leaf(self) -> int:
        """M: the size above which a cluster is split."""
        return max(1, self.config.leaf_size * len(self.ring) // self.config.max_events)

    @property
    def rebuild_due(self) -> bool:
        """True when the tree was built for at most half of the events that are in it."""
        return not self.is_flat and self.arrived >= self.built_size

    def absorb(self, events: Events) -> None:
        """Into the ring and the tree; the oldest leave beyond the limit."""
        surplus = max(0, len(events) - self.config.max_events)  # of this call alone
        events = events.take(slice(surplus, None))
        leaving = max(0, len(self.ring) + len(events) - self.config.max_events)
        self.num_evicted += surplus + leaving
        was_flat = self.is_flat
        self.ring.reserve(min(self.config.max_events, len(self.ring) + len(events)))
        if leaving:
            self.tree.remove(self.ring.oldest(leaving))
            self.ring.forget(leaving)
        slots = self.ring.extend(events)
        self.tree.insert(slots, self.max_leaf, may_split=not self.is_flat)
        self.arrived += len(events)
        if was_flat or leaving == self.config.max_events:
            self.built_size, self.arrived = len(self.ring), 0

    def rebuild(self) -> None:
        """Cluster all events again; afterwards the tree is as good as one that was never added to."""
        old = self.tree
        self.tree = ClusterTree(self.ring, old.vectors, self.config.max_clusters, self.config.iterations, self.seed)
        self.tree.num_draws = old.num_draws
        self.tree.insert(self.ring.slots(), self.max_leaf, may_split=not self.is_flat)
        self.built_size, self.arrived = len(self.ring), 0

    def absorb_chunk(self, events: Events) -> None:
        """:meth:`absorb`, and :meth:`rebuild` where one is due by now. Reading changes nothing afterwards."""
        self.absorb(events)
        if self.rebuild_due:
            self.rebuild()
        self.tree.refresh()

    def grown(self, events: Events) -> Clusters:
        """What :meth:`absorb_chunk` would make of this, which stays as it is."""
        following = copy(self)
        following.ring = self.ring.copy()
        following.tree = self.tree.copy(following.ring)
        following.absorb_chunk(events)
        return following


class LifelongHistory:
    """The events of one user and the tree of clusters over them; ``vectors`` (N, D) are the items'."""

    def __init__(
        self, vectors: Vectors, config: LifelongConfig | None = None, seed: int = 0, background: Executor | None = None
    ) -> None:
        """``background`` clusters waiting chunks ahead of time; without one the event that is due does it."""
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed = {seed!r} is out of range", allowed="whole numbers from 0 up")
        self.config, self.seed = config or LifelongConfig(), seed
        self.clusters = Clusters(vectors, self.config, seed)
        self.tail = Events.of([], [])  # events that wait for the chunk behind theirs
        self.num_late = 0  # events that came after a newer one
        self.newest_time = -1
        self._vectors = vectors
        self._background = background
        self._following: Future[Clusters] | None = None  # the clusters with the tail's first chunk

    def __len__(self) -> int:
        """Events kept."""
        return len(self.ring) + len(self.tail)

    @property
    def vectors(self) -> Vectors:
        """Of the items. A table with new rows below the old ones can be set in its place."""
        return self._vectors

    @vectors.setter
    def vectors(self, longer: Vectors) -> None:
        self._vectors = self.tree.vectors = longer

    @property
    def ring(self) -> ClusteredRing:
        return self.clusters.ring

    @property
    def tree(self) -> ClusterTree:
        return self.clusters.tree

    @property
    def num_evicted(self) -> int:
        """Events that came and were let go beyond the limit."""
        return self.clusters.num_evicted

    @property
    def rebuild_due(self) -> bool:
        """True when the tree was built for at most half of the events that are in it."""
        return self.clusters.rebuild_due

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of this user; the item vectors are shared and not counted, nor are Python's objects."""
        return self.ring.nbytes + self.tree.nbytes + sum(getattr(self.tail, name).nbytes for name in COLUMNS)

    def append(self, events: Events) -> None:
        """Add events, in any order of time; InputError (and nothing happens) when one is of an item without a vector.

        O(depth) per event, and a split or merge of one cluster now and then. The event that makes the history longer
        than ``max_representatives`` builds the tree. With a ``chunk`` and a ``background`` an event is only kept.
        """
        _check_known(events, len(self._vectors))
        if not len(events):
            return
        self.num_late += int((events.times < self.newest_time).sum())
        self.newest_time = max(self.newest_time, int(events.times.max()))
        chunk = self.config.chunk
        if not chunk:
            self.clusters.absorb(events)
            return
        waiting = concatenate([self.tail, events])
        due = self.config.num_clustered(len(waiting))
        for start in range(0, due, chunk):
            self._take_in(waiting.take(slice(start, start + chunk)))
        self.tail = waiting.take(slice(due, None))
        self._prepare()

    def _take_in(self, events: Events) -> None:
        """The tail's first chunk enters the tree."""
        following, self._following = self._following, None
        if following is None or following.cancel():  # the thread has not begun
            self.clusters.absorb_chunk(events)
            return
        self.clusters = following.result()
        self.tree.vectors = self._vectors  # the table may have grown meanwhile

    def _prepare(self) -> None:
        """Have the next state made while the last quarter of a chunk comes in: earlier would only hold its memory."""
        chunk = self.config.chunk
        if self._background is None or self._following is not None or len(self.tail) < 2 * chunk - max(1, chunk // 4):
            return
        if len(self.ring) + chunk > self.config.max_clusters:  # else there is nothing to cluster yet
            self._following = self._background.submit(self.clusters.grown, self.tail.take(slice(0, chunk)))

    def rebuild(self) -> None:
        """Cluster all events again; with a ``chunk`` there is never a need to."""
        self._following = None
        self.clusters.rebuild()

    def arrivals(self, as_of: int | None = None) -> Events:
        """The events kept, or those before ``as_of``, in order of arrival."""
        events = self.ring.events(self.ring.slots())
        if len(self.tail):
            events = concatenate([events, self.tail])
        return events if as_of is None else events.take(events.times < as_of)

    def events(self, as_of: int | None = None) -> Events:
        """The events kept, in time order (ties in order of arrival); with ``as_of`` only those before it."""
        return self.arrivals(as_of).in_time_order()

    def representatives(self, as_of: int | None = None) -> NDArray[Any]:
        """(R,) of dtype TOKEN, what the model reads, oldest mean time first.

        With an ``as_of`` before the newest event, counts, means and nearest members are of the events before it only
        (O(events) work); which events share a cluster may depend on later ones. Not so with a ``chunk``: there the
        clusters of that moment are grown again when fewer chunks were in the tree then (of the events still kept).
        """
        if self.config.chunk:
            return self._as_of_chunks(as_of)
        if as_of is None or as_of > self.newest_time:
            return self.events().tokens() if self.clusters.is_flat else self.clustered()
        slots = self.ring.slots()
        slots = slots[self.ring.columns["times"][slots] < as_of]
        if len(slots) <= self.config.max_representatives:
            return self.events(as_of).tokens()
        slots = slots[np.argsort(self.ring.leaf[slots], kind="stable")]
        _, starts = np.unique(self.ring.leaf[slots], return_index=True)
        found = statistics(self.ring, self._vectors, np.split(slots, starts[1:]))
        return self._tokens(found[0], *found[2:])

    def clustered(self) -> NDArray[Any]:
        """The tokens of the tree alone."""
        tree = self.tree
        tree.refresh()
        leaves = np.array(sorted(tree.members), dtype=np.int64)
        means = (tree.mean_time, tree.mean_watch, tree.mean_duration)
        return self._tokens(tree.count[leaves], tree.nearest[leaves], *(mean[leaves] for mean in means))

    def _as_of_chunks(self, as_of: int | None) -> NDArray[Any]:
        """The clusters of a moment, and the events that waited then one by one."""
        waited = self.tail if as_of is None else self.tail.take(self.tail.times < as_of)
        in_ring = self.ring.columns["times"][self.ring.slots()]
        if len(in_ring) and as_of is not None and (len(waited) < self.config.chunk or as_of <= in_ring.max()):
            past = LifelongHistory(self._vectors, self.config, self.seed)
            past.append(self.arrivals(as_of))
            return past.representatives()
        if self.clusters.is_flat:
            return self.events(as_of).tokens()
        tokens = np.concatenate([self.clustered(), waited.in_time_order().tokens()])
        return tokens[np.argsort(tokens["times"], kind="stable")]

    def _tokens(
        self, count: NDArray, nearest: NDArray, times: NDArray, watch_time: NDArray, duration: NDArray
    ) -> NDArray[Any]:
        order = np.argsort(times, kind="stable")  # equal times: by the cluster's number
        rows = np.empty(len(order), dtype=TOKEN)
        for name in ("item_ids", "labels"):
            rows[name] = self.ring.columns[name][nearest[order]]
        rows["counts"], rows["times"] = count[order], times[order]
        rows["watch_time"], rows["duration"] = watch_time[order], duration[order]
        return rows

    def state(self) -> dict[str, torch.Tensor]:
        """All of it as tensors: events in order of arrival, their clusters, the tree, the counters."""
        slots = self.ring.slots()
        grown = (self.clusters.built_size, self.clusters.arrived)
        counters = [self.seed, self.num_evicted, self.num_late, self.newest_time, *grown]
        arrays = {name: column[slots] for name, column in self.ring.columns.items()}
        arrays |= {"counters": np.array(counters), **self.tree.state()}
        if self.config.chunk:
            arrays |= {f"tail_{name}": getattr(self.tail, name) for name in COLUMNS}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}

    @classmethod
    def from_state(
        cls, state: Mapping[str, torch.Tensor], vectors: Vectors, config: LifelongConfig,
        background: Executor | None = None,
    ) -> LifelongHistory:  # fmt: skip
        """The history that :meth:`state` described; it will answer and grow exactly as that one."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        events = saved_events(arrays)
        seed, *counters = arrays["counters"].tolist()
        history = cls(vectors, config, seed, background)
        history.clusters.num_evicted, history.num_late, history.newest_time = counters[:3]
        history.clusters.built_size, history.clusters.arrived = counters[3:]
        _check_known(events, len(vectors))
        if config.chunk:
            history.tail = saved_events(arrays, "tail_")
            _check_known(history.tail, len(vectors))
        slots = history.ring.extend(events)
        history.ring.leaf[slots] = arrays["leaf"]
        history.tree.restore(arrays)
        if not history.clusters.is_flat:
            history.tree.refresh()  # so that reading changes nothing; pairs are found with the next chunk
        return history


def saved_events(arrays: Mapping[str, NDArray], prefix: str = "") -> Events:
    """Events from saved columns; ValueError unless these have their kinds and one length."""
    columns = {name: arrays[prefix + name] for name in COLUMNS}
    for name, column in columns.items():
        if column.dtype != np.dtype(DTYPES[name]) or column.ndim != 1 or column.shape != columns[COLUMNS[0]].shape:
            raise ValueError(f"column {prefix + name} is {column.dtype} of shape {column.shape}")
    return Events(**columns)


def _check_known(events: Events, num_items: int) -> None:
    """InputError when an event is of an item that has no vector."""
    unknown = np.flatnonzero(events.item_ids >= num_items)
    if len(unknown):
        raise InputError(
            f"event {unknown[0]} is of item {events.item_ids[unknown[0]]} ({len(unknown)} of {len(events)} events)",
            allowed=f"items 0..{num_items - 1}",
            fix="add the item's vector to the table, or leave the event out",
        )
