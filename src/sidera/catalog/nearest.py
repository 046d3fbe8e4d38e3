"""Nearest centroids by GEMM, in chunks, so that an N x K matrix never exists whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32
CACHED_ELEMENTS = 1 << 18  # 1 MiB of float32


def chunk_rows(num_rows: int, width: int) -> Iterator[slice]:
    """Slices over the rows, each with at most CHUNK_ELEMENTS // width of them."""
    step = max(1, CHUNK_ELEMENTS // max(1, width))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def half_distances(points: Tensor, centroids: Tensor, offsets: Tensor) -> Tensor:
    """(n, K) = |centroid|^2 / 2 - point . centroid + offset: half the squared distance, less the point's own norm."""
    return torch.addmm(offsets, points, centroids.T, alpha=-1.0)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid; ties go to the lowest. (N, D), (K, D) -> (N,) int64."""
    return nearest_costs(points, centroids)[0]


def nearest_costs(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`nearest`, and half the squared distance to it less half the point's own square: (N,) int64, (N,) float32.

    In chunks that stay in the processor's cache, with numpy's argmin: faster than one large matrix and torch's.
    """
    offsets = centroids.square().sum(1) / 2
    found, costs = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    step = max(1, CACHED_ELEMENTS // max(1, len(centroids)))
    places = np.arange(min(step, len(points)))
    for start in range(0, len(points), step):
        rows = half_distances(points[start : start + step], centroids, offsets).numpy()
        best = rows.argmin(axis=1)
        found[start : start + step] = best
        costs[start : start + step] = rows[places[: len(rows)], best]
    return torch.from_numpy(found), torch.from_numpy(costs)
