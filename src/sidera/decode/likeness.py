"""Which semantic IDs have like codes: the edges of the graph that :class:`sidera.decode.parallel.GraphSearch` walks.

A semantic ID is the sum, over its levels, of the vectors of its codes, each in a space of its own; how alike two are is
the sum of the products of their codes' vectors. Few are compared with all others. Many are first put in clusters, by
one random projection of their vectors, and compared inside the nearest clusters.

Shape legend: n semantic IDs · L levels · D dims of a code's vector · E neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = 20_000  # semantic IDs of which each is compared with all
PROJECTED = 64  # dims of the clustering
PROBES = 8  # clusters that a semantic ID is compared inside
CHUNK = 1 << 24  # numbers that exist at a time


def like_neighbours(vectors: Tensor, rows: Tensor, number: int, seed: int = 0) -> Tensor:
    """vectors (sum of K, D) of all codes, rows (n, L) of each semantic ID -> (n, E) the most alike, nearest first.

    E is ``number``, or n - 1 where that is less; a semantic ID is not among its own. It may be found by nobody: walks
    begin at several places.
    """
    total = len(rows)
    number = max(1, min(number, total - 1))
    if total == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    if total <= WHOLE:
        whole = vectors[rows].flatten(1)  # (n, L*D)
        step = max(1, CHUNK // total)
        parts = [_nearest(whole[low : low + step] @ whole.T, low, number) for low in range(0, total, step)]
        return torch.cat(parts).cpu()
    return _by_clusters(vectors, rows, number, seed)


def _nearest(products: Tensor, first: int, number: int) -> Tensor:
    """(m, n) of the semantic IDs from ``first`` on -> (m, E)"""
    own = torch.arange(len(products), device=products.device)
    products[own, own + first] = float("-inf")
    return products.topk(number, dim=1).indices


def _by_clusters(vectors: Tensor, rows: Tensor, number: int, seed: int) -> Tensor:
    """The same among those that stand in the nearest clusters."""
    drawn = torch.Generator().manual_seed(seed)
    (total, num_levels), width = rows.shape, vectors.shape[1]
    project = torch.randn(num_levels, width, PROJECTED, generator=drawn).to(vectors) * PROJECTED**-0.5
    points = vectors.new_zeros(total, PROJECTED)
    for level in range(num_levels):  # a level's codes are projected once each
        points += (vectors @ project[level])[rows[:, level]]
    num_clusters = int(total**0.5)
    centres = points[torch.randperm(total, generator=drawn)[:num_clusters].to(points.device)]
    for _ in range(4):
        which = _assigned(points, centres, 1)[:, 0]
        counts = torch.bincount(which, minlength=num_clusters).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, which, points) / counts[:, None]
    probes = _assigned(points, centres, min(PROBES, num_clusters))  # (n, P)
    order = probes[:, 0].argsort(stable=True)
    bounds = torch.bincount(probes[:, 0], minlength=num_clusters).cumsum(0).tolist()
    found = torch.zeros(total, number, dtype=torch.int64)
    low = 0
    for high in bounds:
        members, low = order[low:high], high
        if not len(members):
            continue
        near = probes[members].flatten().unique()
        spans = [order[(bounds[c - 1] if c else 0) : bounds[c]] for c in near.tolist()]
        others = torch.cat(spans)
        products = points[members] @ points[others].T
        products[members[:, None] == others] = float("-inf")
        best = products.topk(min(number, len(others) - 1), dim=1).indices
        found[members.cpu(), : best.shape[1]] = others[best].cpu()
    return found


def _assigned(points: Tensor, centres: Tensor, number: int) -> Tensor:
    """(n, number) nearest centres."""
    half = centres.square().sum(1) / 2
    step = max(1, CHUNK // len(centres))
    parts = [(part @ centres.T - half).topk(number, dim=1).indices for part in points.split(step)]
    return torch.cat(parts)
