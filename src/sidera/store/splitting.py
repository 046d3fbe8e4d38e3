"""k-means over one cluster of one history: what a split does (OneRec report, 2.2: floor(cuberoot(|D|)) clusters).

Users come back to items, and equal vectors always land together. So the points are the *distinct* items with the
number of events as weight: the same clustering at a fraction of the work, and an item is never torn apart by rounding.

Trap: few iterations from good seeds (k-means++) are enough here, but k-means can leave a cluster empty; such clusters
are dropped rather than restarted, so fewer may come back than asked for.

Shape legend: U distinct items · K clusters · D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Vectors = Any  # (N, D) of items: Floats, or a table that decodes the rows that are asked for


def num_splits(num_events: int) -> int:
    """floor(cuberoot(n)), at least 2: below 8 events the formula gives 1, which would not split anything."""
    root = round(num_events ** (1 / 3))
    return max(2, root - (root**3 > num_events))  # the power alone gives 3.999... for 64


def weighted_kmeans(
    points: Floats, weights: NDArray[np.int64], num_clusters: int, iterations: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """(U, D), (U,) -> centres (K, D), assignment (U,) int64; every point is with its nearest centre, none is empty."""
    centres = _seeds(points, weights, num_clusters, rng)
    mass = weights.astype(np.float32)
    assignment = nearest_centres(points, centres)
    for _ in range(iterations):
        member = np.zeros((len(centres), len(points)), dtype=np.float32)
        member[assignment, np.arange(len(points))] = mass
        sums = member @ points  # (K, D)
        totals = np.bincount(assignment, weights=weights, minlength=len(centres))
        kept = totals > 0
        centres = (sums[kept] / totals[kept, None]).astype(np.float32)
        previous, assignment = assignment, nearest_centres(points, centres)
        if kept.all() and np.array_equal(previous, assignment):
            break
    used, assignment = np.unique(assignment, return_inverse=True)
    return centres[used], assignment.astype(np.int64)


def nearest_centres(points: Floats, centres: Floats) -> NDArray[np.int64]:
    """(U, D), (K, D) -> (U,); ties go to the lowest."""
    return (half_norms(centres) - points @ centres.T).argmin(axis=1)


def half_norms(centres: Floats) -> Floats:
    """(K,) half the squared length: half_norm - centre . point orders centres as their distance does."""
    return np.einsum("kd,kd->k", centres, centres) / 2


def _seeds(points: Floats, weights: NDArray[np.int64], num_clusters: int, rng: np.random.Generator) -> Floats:
    """k-means++: the next seed is drawn with probability ~ weight times squared distance to the nearest seed so far."""
    chosen = [int(rng.choice(len(points), p=weights / weights.sum()))]
    distance = np.square(points - points[chosen[0]]).sum(axis=1, dtype=np.float64)
    for _ in range(num_clusters - 1):
        chance = np.cumsum(weights * distance)
        if chance[-1] <= 0:
            break  # fewer distinct vectors than clusters
        pick = min(int(np.searchsorted(chance, rng.random() * chance[-1], side="right")), len(points) - 1)
        chosen.append(pick)
        np.minimum(distance, np.square(points - points[pick]).sum(axis=1, dtype=np.float64), out=distance)
    return points[chosen]
