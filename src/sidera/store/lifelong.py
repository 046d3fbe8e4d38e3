"""Lifelong histories: up to 100,000 events of one user as at most 2,000 representatives, kept up event by event.

OneRec technical report, 2.2: recursive k-means of a user's events in the item vector space, floor(cuberoot(|D|))
clusters a split, until a set has at most M events. Of each cluster the categorical features (item, creator, labels) are
those of the event nearest to the centre; time, watch time and duration are means. A QFormer in the model reads these
tokens (``nn/qformer.py``).

    history = LifelongHistory(ItemTable.of(vectors, creators))
    history.append(Events.of(item_ids, times, labels, watch_time, duration))   # one event or 100,000
    tokens = history.representatives()                                         # ordered by mean time

The report does not print M. Here M is ``leaf_size`` for a full history and shrinks with it, so that a user with 5,000
events has about as many representatives as one with 100,000, not one in fifty; up to ``max_representatives`` events are
kept as they are. docs/evidence/lifelong.md has the figures.

With ``chunk`` above 0 events enter the tree by whole chunks, each when the chunk behind it is whole too; until then
they are tokens of their own. The tokens are then a function of the events and their order alone, whoever appended them
and in how many calls: what a model reads in training (``store.log_events``) and in serving is the same. A chunk that
waits is clustered ahead of time by another thread (``background``), on a copy, so that no event waits for a rebuild.

Trap: a tree remembers its youth. Appending never moves old cells; when ``rebuild_due`` turns true (as many events came
as there were at the last build), call ``rebuild()`` where a second of work hurts nobody.

Not thread-safe: ``behaviour.BehaviourStore`` holds a lock for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidera import artifacts
from sidera.config import check_value, later, parse_section, written
from sidera.core import ArtifactError, InputError
from sidera.loading import open_artifact
from sidera.store.cluster_tree import ClusterTree
from sidera.store.clusters import Clusters
from sidera.store.events import COLUMNS, DTYPES, EventRing, Events, ItemTable, concatenate
from sidera.store.statistics import statistics

KIND = "lifelong"
LARGEST = 2**30  # events; slots are 32-bit


@dataclass(frozen=True)
class LifelongConfig:
    """How one history is kept."""

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

    def __post_init__(self) -> None:
        limits = {"max_events": LARGEST, "max_representatives": LARGEST, "leaf_size": LARGEST, "iterations": 1000}
        for name, high in limits.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high
            check_value("[lifelong]", name, value, good, f"whole numbers from 1 to {high}")
        most = min((self.max_representatives - 1) // 2, self.max_events)
        good = isinstance(self.chunk, int) and not isinstance(self.chunk, bool) and 0 <= self.chunk <= most
        check_value("[lifelong]", "chunk", self.chunk, good, f"whole numbers from 0 to {most}, for less than two wait")


@dataclass(frozen=True, eq=False)
class Representatives:
    """R tokens of one history, oldest mean time first."""

    item_ids: NDArray[np.int64]  # (R,) of the member nearest to the centre
    creators: NDArray[np.int64]  # (R,) of that item, -1 where unknown
    labels: NDArray[np.int64]  # (R,) of that event
    counts: NDArray[np.int64]  # (R,) events that the token stands for
    times: NDArray[np.float64]  # (R,) mean, unix seconds
    watch_time: NDArray[np.float32]  # (R,) mean, seconds
    duration: NDArray[np.float32]  # (R,) mean, seconds

    def __len__(self) -> int:
        return len(self.item_ids)


class LifelongHistory:
    """The events of one user and the tree of clusters over them."""

    def __init__(
        self, items: ItemTable, config: LifelongConfig | None = None, seed: int = 0, background: Executor | None = None
    ) -> None:
        """``background`` clusters waiting chunks ahead of time; without one the event that is due does it."""
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed = {seed!r} is out of range", allowed="whole numbers from 0 up")
        self.items, self.config, self.seed = items, config or LifelongConfig(), seed
        self.clusters = Clusters(items, self.config, seed)
        self.tail = Events.of([], [])  # events that wait for the chunk behind theirs
        self.num_late = 0  # events that came after a newer one
        self.newest_time = -1
        self._background = background
        self._following: Future[Clusters] | None = None  # the clusters with the tail's first chunk

    def __len__(self) -> int:
        """Events kept."""
        return len(self.ring) + len(self.tail)

    @property
    def ring(self) -> EventRing:
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
        """Bytes of the arrays of this user; the item table is shared and not counted, nor are Python's objects."""
        return self.ring.nbytes + self.tree.nbytes + sum(getattr(self.tail, name).nbytes for name in COLUMNS)

    def append(self, events: Events) -> None:
        """Add events, in any order of time; InputError (and nothing happens) when one is of an unknown item.

        O(depth) per event, and a split or merge of one cluster now and then. The event that makes the history longer
        than ``max_representatives`` builds the tree. With a ``chunk`` and a ``background`` an event is only kept.
        """
        events.check_known(self.items)
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
        if following is None or following.cancel():  # not begun: done here
            self.clusters.absorb_chunk(events)
            return
        self.clusters = following.result()
        self.tree.vectors = self.items.vectors  # the table may have grown meanwhile

    def _prepare(self) -> None:
        """Have the next state made while the last quarter of a chunk comes in: earlier would only hold its memory."""
        chunk = self.config.chunk
        if self._background is None or self._following is not None or len(self.tail) < 2 * chunk - max(1, chunk // 4):
            return
        if len(self.ring) + chunk > self.config.max_clusters:  # else there is nothing to cluster yet
            self._following = self._background.submit(self.clusters.grown, self.tail.take(slice(0, chunk)))

    def rebuild(self) -> None:
        """Cluster all events anew; with a ``chunk`` there is never a need to."""
        self._following = None
        self.clusters.rebuild()

    def set_items(self, items: ItemTable) -> None:
        """Take a table with new items below the old ones; InputError when old vectors differ."""
        items.check_extends(self.items)
        self.replace_items(items)

    def replace_items(self, items: ItemTable) -> None:
        """:meth:`set_items` for a table that was checked for many users at once."""
        self.items, self.tree.vectors = items, items.vectors

    def events(self, as_of: int | None = None) -> Events:
        """The events kept, in time order (ties in order of arrival); with ``as_of`` only those before it."""
        events = self._arrivals(as_of)
        return events.take(np.argsort(events.times, kind="stable")) if self.num_late else events

    def held_items(self) -> NDArray[np.int32]:
        """The items of the events kept, each once."""
        return np.unique(np.concatenate([self.ring.item_ids[self.ring.slots()], self.tail.item_ids]))

    def representatives(self, as_of: int | None = None) -> Representatives:
        """The tokens that the model reads.

        With an ``as_of`` before the newest event, counts, means and nearest members are of the events before it only
        (O(events) work); which events share a cluster may owe something to later ones. Not so with a ``chunk``: there
        the clusters of that moment are grown again when fewer chunks were in the tree then (of the events still kept).
        """
        if self.config.chunk:
            return self._as_of_chunks(as_of)
        if as_of is None or as_of > self.newest_time:
            if self.clusters.is_flat:
                return self._as_they_are(self.events())
            return self.clustered()
        slots = self.ring.slots()
        slots = slots[self.ring.columns["times"][slots] < as_of]
        if len(slots) <= self.config.max_representatives:
            return self._as_they_are(self.events(as_of))
        slots = slots[np.argsort(self.ring.leaf[slots], kind="stable")]
        _, starts = np.unique(self.ring.leaf[slots], return_index=True)
        found = statistics(self.ring, self.items.vectors, np.split(slots, starts[1:]))
        return self._tokens(found[0], *found[2:])

    def state(self) -> dict[str, torch.Tensor]:
        """All of it as tensors: events in order of arrival, their clusters, the tree, the counters."""
        slots = self.ring.slots()
        grown = (self.clusters.built_size, self.clusters.arrived)
        counters = [self.seed, self.num_evicted, self.num_late, self.newest_time, *grown]
        arrays = {name: column[slots] for name, column in self.ring.columns.items()}
        arrays |= {"leaf": self.ring.leaf[slots], "counters": np.array(counters), **self.tree.state()}
        if self.config.chunk:
            arrays |= {f"tail_{name}": getattr(self.tail, name) for name in COLUMNS}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}

    @classmethod
    def from_state(
        cls, state: Mapping[str, torch.Tensor], items: ItemTable, config: LifelongConfig,
        background: Executor | None = None,
    ) -> LifelongHistory:  # fmt: skip
        """The history that :meth:`state` described; it will answer and grow exactly as that one."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        _check_columns(arrays, "")
        seed, *counters = arrays["counters"].tolist()
        history = cls(items, config, seed, background)
        history.clusters.num_evicted, history.num_late, history.newest_time = counters[:3]
        history.clusters.built_size, history.clusters.arrived = counters[3:]
        events = Events(**{name: arrays[name] for name in COLUMNS})
        events.check_known(items)
        if config.chunk:
            _check_columns(arrays, "tail_")
            history.tail = Events(**{name: arrays[f"tail_{name}"] for name in COLUMNS})
            history.tail.check_known(items)
        slots = history.ring.extend(events)
        history.ring.leaf[slots] = arrays["leaf"]
        history.tree.restore(arrays)
        if not history.clusters.is_flat:
            history.tree.settle(history.clusters.max_leaf)  # now, not at the first event
        return history

    def save(self, path: str | Path) -> None:
        """Write an artifact of kind "lifelong"; an older one at ``path`` survives until the new one is whole."""
        info: dict[str, Any] = {"num_events": len(self), "width": self.items.width}
        recipe = {"lifelong": written(self.config), "seed": self.seed}
        digest = self.items.digest(self.held_items())
        with artifacts.writing(path, artifacts.Manifest(KIND, digest, recipe=recipe, info=info)) as folder:
            artifacts.save_tensors(folder, self.state(), prefix="history")

    @classmethod
    def load(cls, path: str | Path, items: ItemTable) -> LifelongHistory:
        """Read what :meth:`save` wrote; ArtifactError when it is damaged or was clustered with other vectors."""
        opened = open_artifact(path, KIND)
        width = opened.info("width", int)
        if width != items.width:
            raise ArtifactError(
                f"{path} was clustered with vectors of width {width}, the table has {items.width}",
                fix="give the table it was made with, or build it again from its events",
            )
        with opened.believed():
            config = parse_section(LifelongConfig, opened.recipe("lifelong", dict), "[lifelong]")
            history = cls.from_state(opened.tensors("history"), items, config)
        if items.digest(history.held_items()) != opened.manifest.digest:
            raise ArtifactError(
                f"{path} was clustered with other vectors of the same width",
                fix="give the table it was made with, or build it again from its events",
            )
        return history

    def _arrivals(self, as_of: int | None) -> Events:
        """The events kept, or those before ``as_of``, in order of arrival."""
        events = self.ring.events(self.ring.slots())
        if len(self.tail):
            events = concatenate([events, self.tail])
        return events if as_of is None else events.take(events.times < as_of)

    def _as_of_chunks(self, as_of: int | None) -> Representatives:
        """The clusters of a moment, and the events that waited then one by one."""
        waited = self.tail if as_of is None else self.tail.take(self.tail.times < as_of)
        in_ring = self.ring.columns["times"][self.ring.slots()]
        if len(in_ring) and as_of is not None and (len(waited) < self.config.chunk or as_of <= in_ring.max()):
            past = LifelongHistory(self.items, self.config, self.seed)
            past.append(self._arrivals(as_of))
            past.num_late = self.num_late  # they came in one call now, in the old order
            return past.representatives()
        if self.clusters.is_flat:
            return self._as_they_are(self.events(as_of))
        parts = (self.clustered(), self._as_they_are(waited))
        order = np.argsort(np.concatenate([part.times for part in parts]), kind="stable")
        joined = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in vars(parts[0])}
        return Representatives(**joined)

    def clustered(self) -> Representatives:
        """The tokens of the tree alone."""
        tree = self.tree
        tree.refresh()
        leaves = np.array(sorted(tree.members), dtype=np.int64)
        means = (tree.mean_time, tree.mean_watch, tree.mean_duration)
        return self._tokens(tree.count[leaves], tree.nearest[leaves], *(mean[leaves] for mean in means))

    def _as_they_are(self, events: Events) -> Representatives:
        return Representatives(
            item_ids=events.item_ids.astype(np.int64),
            creators=self.items.creators[events.item_ids],
            labels=events.labels.astype(np.int64),
            counts=np.ones(len(events), dtype=np.int64),
            times=events.times.astype(np.float64),
            watch_time=events.watch_time,
            duration=events.duration,
        )

    def _tokens(
        self, count: NDArray, nearest: NDArray, times: NDArray, watch_time: NDArray, duration: NDArray
    ) -> Representatives:
        order = np.argsort(times, kind="stable")  # equal times: by the cluster's number
        events = self.ring.events(nearest[order])
        return Representatives(
            item_ids=events.item_ids.astype(np.int64),
            creators=self.items.creators[events.item_ids],
            labels=events.labels.astype(np.int64),
            counts=count[order],
            times=times[order],
            watch_time=watch_time[order].astype(np.float32),
            duration=duration[order].astype(np.float32),
        )


def _check_columns(arrays: Mapping[str, NDArray], prefix: str) -> None:
    """ValueError unless the saved columns of events have their kinds and one length."""
    for name in COLUMNS:
        found = arrays[prefix + name]
        if found.dtype != np.dtype(DTYPES[name]) or found.shape != arrays[prefix + COLUMNS[0]].shape or found.ndim != 1:
            raise ValueError(f"column {prefix + name} is {found.dtype} of shape {found.shape}")
