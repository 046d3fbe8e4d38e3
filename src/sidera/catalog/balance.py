"""Balanced assignment: every point to a near centroid, no centroid above its capacity.

The optimum is a transport problem. It is approached from its dual: each centroid has a price that is added to the
distance; a price rises where too many points come and falls where too few do. What the prices leave over is settled by
rounds of regret: each unplaced point asks for its cheapest centroid with room, and the points that would lose most by
their second choice are taken first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.catalog.nearest import chunk_rows, half_distances

PRICE_STEPS = 12


def balanced_assign(
    points: Tensor, centroids: Tensor, capacity: int, prices: Tensor | None = None, steps: int = PRICE_STEPS
) -> tuple[Tensor, Tensor]:
    """(N, D), (K, D) -> assignment (N,) with at most ``capacity`` points each, prices (K,) to start from next time."""
    num_clusters = centroids.shape[0]
    half_norms = centroids.square().sum(1) / 2
    prices = torch.zeros(num_clusters) if prices is None else prices.clone()
    for _ in range(steps):
        best, margin = _two_cheapest(points, centroids, half_norms + prices)
        counts = torch.bincount(best, minlength=num_clusters)
        if int(counts.max()) <= capacity and not bool((prices[counts < capacity] > 0).any()):
            break
        prices = _adjust(prices, best, margin, counts, capacity)
    return _settle(points, centroids, half_norms + prices, capacity), prices


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


def _adjust(prices: Tensor, best: Tensor, margin: Tensor, counts: Tensor, capacity: int) -> Tensor:
    """Raise the price of a crowded centroid to where its surplus would leave; lower that of one with room."""
    order = _by_cluster(best, margin)  # (N,) clusters after each other, smallest margin first
    starts = counts.cumsum(0) - counts
    surplus = counts - capacity
    crowded = surplus > 0
    leaving = order[(starts + surplus - 1)[crowded]]
    prices = prices.clone()
    prices[crowded] += 0.7 * margin[leaving]  # damped: the neighbours rise at the same time
    prices[~crowded] *= (counts[~crowded] / capacity).clamp(min=0.5, max=1.0)
    return prices


def _settle(points: Tensor, centroids: Tensor, offsets: Tensor, capacity: int) -> Tensor:
    num_clusters = centroids.shape[0]
    room = torch.full((num_clusters,), capacity)
    assignment = torch.full((points.shape[0],), -1)
    waiting = torch.arange(points.shape[0])
    while waiting.numel():
        open_offsets = torch.where(room > 0, offsets, torch.inf)
        best, margin = _two_cheapest(points[waiting], centroids, open_offsets)
        order = _by_cluster(best, -margin)  # largest regret first
        counts = torch.bincount(best, minlength=num_clusters)
        place = torch.arange(waiting.numel()) - (counts.cumsum(0) - counts)[best[order]]  # rank inside its cluster
        taken = order[place < room[best[order]]]
        assignment[waiting[taken]] = best[taken]
        room -= torch.bincount(best[taken], minlength=num_clusters)
        keep = torch.ones(waiting.numel(), dtype=torch.bool)
        keep[taken] = False
        waiting = waiting[keep]
    return assignment


def _by_cluster(cluster: Tensor, key: Tensor) -> Tensor:
    """Indices sorted by cluster, inside a cluster by ascending key."""
    by_key = key.argsort(stable=True)
    return by_key[cluster[by_key].argsort(stable=True)]
