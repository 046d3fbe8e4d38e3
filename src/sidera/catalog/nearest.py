"""Nearest centroids by GEMM, in chunks, so that an N x K matrix never exists whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32


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
    offsets = centroids.square().sum(1) / 2
    parts = [
        half_distances(points[rows], centroids, offsets).min(dim=1).indices
        for rows in chunk_rows(points.shape[0], centroids.shape[0])
    ]
    return torch.cat(parts)
