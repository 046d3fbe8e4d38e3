"""The clustered part of one lifelong history: a ring of events and the tree over them, and how both grow.

Growing can be done on a copy (:meth:`Clusters.grown`) while the original is being read: ``lifelong`` has a thread
make the next state of a long history ahead of time, so that no event waits for k-means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidera.store.cluster_tree import ClusterTree
from sidera.store.events import EventRing, Events, ItemTable

if TYPE_CHECKING:
    from sidera.store.lifelong import LifelongConfig


class Clusters:
    """Events in order of arrival and the clusters they are in."""

    def __init__(self, items: ItemTable, config: LifelongConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.ring = EventRing(config.max_events)
        self.tree = ClusterTree(self.ring, items.vectors, config.max_clusters, config.iterations, seed)
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
        """Cluster all events anew; afterwards the tree is as good as one that was never added to."""
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
        following = object.__new__(Clusters)
        following.__dict__.update(self.__dict__)
        following.ring = self.ring.copy()
        following.tree = self.tree.copy(following.ring)
        following.absorb_chunk(events)
        return following
