"""What a cluster says of its members: count, centre, nearest member, means. From the members themselves, every time.

Sums that are carried along drift; recomputed ones are exact, and the same after a reload. The work is one pass over the
members of the clusters asked for, all clusters together.

Shape legend: G clusters · D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sidera.store.events import EventRing, Slots


def statistics(
    ring: EventRing, vectors: NDArray[np.float32], members: Sequence[Sequence[int] | Slots]
) -> tuple[NDArray, ...]:
    """Of G clusters: count, centre (G, D), nearest slot (-1: no members), mean time, watch time and duration (of the
    members whose seconds are known, NaN where none are).

    Nearest of equals: the smaller item id, and of its events the one that came last.
    """
    sizes = np.array([len(slots) for slots in members], dtype=np.int64)
    slots = np.concatenate([np.array(part, dtype=np.int64) for part in members])
    group = np.repeat(np.arange(len(members)), sizes)
    safe = np.maximum(sizes, 1)  # the one leaf of an empty history

    def mean(name: str) -> NDArray[np.float64]:
        values = ring.columns[name][slots]
        unknown = np.isnan(values)
        if not unknown.any():
            return np.bincount(group, weights=values, minlength=len(members)) / safe
        known = np.bincount(group[~unknown], minlength=len(members))
        sums = np.bincount(group[~unknown], weights=values[~unknown], minlength=len(members))
        return np.where((known == 0) & (sizes > 0), np.nan, sums / np.maximum(known, 1))

    items = ring.item_ids[slots]
    order = np.lexsort((items, group))  # stable: order of arrival inside (group, item)
    pair_group, pair_item = group[order], items[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (pair_group[1:] != pair_group[:-1]) | (pair_item[1:] != pair_item[:-1])
    first = np.flatnonzero(new)  # of each (group, item)
    repeats = np.diff(np.append(first, len(order)))
    last = slots[order][first + repeats - 1]
    pair_group, points = pair_group[first], vectors[pair_item[first]].astype(np.float64)
    centre = np.zeros((len(members), vectors.shape[1]))
    nearest = np.full(len(members), -1, dtype=np.int64)
    filled = np.flatnonzero(sizes)
    if len(filled):
        begins = np.searchsorted(pair_group, filled)
        sums = np.add.reduceat(points * repeats[:, None], begins, axis=0)
        centre[filled] = sums / sizes[filled, None]
        distance = np.square(points - centre[pair_group]).sum(axis=1)
        smallest = np.minimum.reduceat(distance, begins)
        hits = np.flatnonzero(distance == np.repeat(smallest, np.diff(np.append(begins, len(points)))))
        _, lowest = np.unique(pair_group[hits], return_index=True)
        nearest[filled] = last[hits[lowest]]
    return sizes, centre.astype(np.float32), nearest, mean("times"), mean("watch_time"), mean("duration")
