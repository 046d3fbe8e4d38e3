"""Small item tables and event streams, and the slow reference that incremental results answer to."""

from __future__ import annotations

import numpy as np

from sidera.store.events import Events
from sidera.store.lifelong import LifelongHistory


def item_vectors(num_items: int = 300, width: int = 8, seed: int = 0) -> np.ndarray:
    """(N, D) float32 vectors of items around 12 topics."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(12, width))
    vectors = topics[rng.integers(12, size=num_items)] + 0.4 * rng.normal(size=(num_items, width))
    return vectors.astype(np.float32)


def stream(num_events: int, num_items: int = 300, start: int = 1_000_000, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    return Events.of(
        rng.integers(num_items, size=num_events),
        start + np.sort(rng.integers(10 * num_events, size=num_events)),
        rng.integers(4, size=num_events),
        rng.random(num_events) * 60,
        rng.random(num_events) * 60,
    )


def clusters_of(history: LifelongHistory) -> dict[int, list[int]]:
    """Cluster -> its events (their place in the order of arrival), from the label of each event alone."""
    found: dict[int, list[int]] = {}
    for place, slot in enumerate(history.ring.slots().tolist()):
        found.setdefault(int(history.ring.leaf[slot]), []).append(place)
    return found


def recomputed(history: LifelongHistory) -> list[tuple[float, int, int, int, float, float, float]]:
    """The tokens from the members of each cluster, in plain loops: time, item, label, count, watch, duration,
    and the squared distance of the representative."""
    ring = history.ring
    events = ring.events(ring.slots())
    rows = []
    for leaf in sorted(history.tree.members):
        members = clusters_of(history).get(leaf, [])
        vectors = history.vectors[events.item_ids[members]].astype(np.float64)
        centre = vectors.mean(axis=0)
        distances = np.square(vectors - centre).sum(axis=1)
        best = min(
            range(len(members)), key=lambda m: (round(distances[m], 9), int(events.item_ids[members[m]]), -members[m])
        )
        event = members[best]
        item = int(events.item_ids[event])
        rows.append(
            (
                float(np.mean(events.times[members].astype(np.float64))),
                item,
                int(events.labels[event]),
                len(members),
                float(np.mean(events.watch_time[members].astype(np.float64))),
                float(np.mean(events.duration[members].astype(np.float64))),
                float(distances[best]),
            )
        )
    return sorted(rows, key=lambda row: row[0])
