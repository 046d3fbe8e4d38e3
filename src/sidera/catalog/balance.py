"""Balanced assignment: every point to a near centroid, no centroid above its capacity.

The optimum is a transport problem, approached from its entropic dual (Sinkhorn; Cuturi 2013): every centroid has a
price that is added to the distance and moves with the logarithm of its softened load, while the softness shrinks.
What the prices leave over is settled by rounds of regret: each unplaced point asks for its cheapest centroid with
room, and the points that would lose most by their second choice are taken first. Within about 1 % of the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sidera.catalog.nearest import chunk_rows, half_distances

COLD_STEPS, COLD_SOFTNESS = 40, 0.5  # from prices of zero; the softness is relative to the spread of distances
WARM_STEPS, WARM_SOFTNESS = 12, 0.1  # from the prices of the iteration before
FINAL_SOFTNESS = 0.01
MAX_STEP = 5.0  # an emptied centroid must not get so cheap at once that everything falls into it


def balanced_assign(
    points: Tensor, centroids: Tensor, capacity: int, prices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(N, D), (K, D) -> assignment (N,) with at most ``capacity`` points each, prices (K,) to start from next time."""
    num_points, num_clusters = points.shape[0], centroids.shape[0]
    if capacity * num_clusters < num_points:
        raise ValueError(f"{num_clusters} clusters of {capacity} cannot hold {num_points} points")
    half_norms = centroids.square().sum(1) / 2  # (K,)
    steps, softness = (COLD_STEPS, COLD_SOFTNESS) if prices is None else (WARM_STEPS, WARM_SOFTNESS)
    prices = torch.zeros(num_clusters) if prices is None else prices
    slack = capacity * num_clusters - num_points  # places left empty: points that are equally far from everything
    tiles = _Tiles(points, centroids, half_norms)
    scale = sum(float((costs.mean(1) - costs.min(1).values).sum()) for costs in tiles) / num_points  # spread of costs
    for step in range(steps if scale > 0 and num_clusters > 1 else 0):
        soft = scale * softness * (FINAL_SOFTNESS / softness) ** (step / (steps - 1))
        load = slack * torch.softmax(-prices / soft, dim=0)
        for costs in tiles:  # (n, K)
            load += torch.softmax((costs + prices).div_(-soft), dim=1).sum(0)
        prices = prices + soft * (load / capacity).clamp(1 / MAX_STEP, MAX_STEP).log()
    return _settle(points, centroids, half_norms + prices, capacity), prices


class _Tiles:
    """Costs (n, K) chunk by chunk, made anew on every pass, unless all of them fit into one chunk."""

    def __init__(self, points: Tensor, centroids: Tensor, half_norms: Tensor) -> None:
        self.points, self.centroids, self.half_norms = points, centroids, half_norms
        self.slices = list(chunk_rows(points.shape[0], centroids.shape[0]))
        self.kept = [self._costs(rows) for rows in self.slices] if len(self.slices) == 1 else None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.kept) if self.kept else (self._costs(rows) for rows in self.slices)

    def _costs(self, rows: slice) -> Tensor:
        return half_distances(self.points[rows], self.centroids, self.half_norms)


def _settle(points: Tensor, centroids: Tensor, offsets: Tensor, capacity: int) -> Tensor:
    num_clusters = centroids.shape[0]
    room = torch.full((num_clusters,), capacity)
    assignment = torch.full((points.shape[0],), -1)
    waiting = torch.arange(points.shape[0])
    while waiting.numel():
        best, regret = _two_cheapest(points[waiting], centroids, torch.where(room > 0, offsets, torch.inf))
        order = _by_cluster(best, -regret)
        counts = torch.bincount(best, minlength=num_clusters)
        starts = counts.cumsum(0) - counts
        place = torch.arange(waiting.numel()) - starts[best[order]]  # rank inside its cluster
        taken = order[place < room[best[order]]]
        assignment[waiting[taken]] = best[taken]
        room -= torch.bincount(best[taken], minlength=num_clusters)
        keep = torch.ones(waiting.numel(), dtype=torch.bool)
        keep[taken] = False
        waiting = waiting[keep]
    return assignment


def _two_cheapest(points: Tensor, centroids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Cheapest centroid of every point, and how much dearer the second is. (N,), (N,)."""
    best, margin = [], []
    for rows in chunk_rows(points.shape[0], centroids.shape[0]):
        costs = half_distances(points[rows], centroids, offsets)  # (n, K)
        low, index = costs.min(dim=1)
        costs.scatter_(1, index.unsqueeze(1), torch.inf)
        best.append(index)
        margin.append(costs.min(dim=1).values - low)
    return torch.cat(best), torch.cat(margin)


def _by_cluster(cluster: Tensor, key: Tensor) -> Tensor:
    """Indices sorted by cluster, inside a cluster by ascending key."""
    by_key = key.argsort(stable=True)
    return by_key[cluster[by_key].argsort(stable=True)]
