"""k-means by Lloyd's algorithm, plain or balanced: what every quantizer with learned centroids is fitted by.

Exercise it with ``python benchmarks/quantizers.py --quick``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sidera.catalog.balance import WHOLE, balanced_assign
from sidera.catalog.nearest import chunk_rows, nearest_costs
from sidera.core import InputError

SEEDING_LIMIT = 1024  # k-means++ is quadratic in K: above this many codes the seeds are a plain sample
SEEDING_POOL = 16384  # points that the seeds are chosen among, at most
FITTING_SAMPLE = 64  # points per cluster that a large clustering is fitted on before it sees all of them
LAST_ITERATIONS = {True: 10, False: 20}  # balanced or not: over all points, once a sample has settled the centroids
SETTLED = {True: 2e-4, False: 1e-4}  # a large clustering whose error fell by less in three iterations is done


def default_codebook_size(num_items: int) -> int:
    """A power of two near 2 * sqrt(N), so that a level and the items below it are of a size: 256 for 12,000 items."""
    return min(num_items, 8192, 1 << max(0, round(math.log2(2 * num_items**0.5))))


def checked_codebook_size(size: int, num_items: int) -> int:
    """``size``, or the usual one where it is 0; InputError when there are fewer items than codes."""
    if size > num_items:
        raise InputError(
            f"codebook_size = {size} but there are only {num_items} items to cluster",
            allowed=f"1..{num_items}",
            fix="lower [catalog.quantizer] codebook_size, or set it to 0 to have it chosen",
        )
    return size or default_codebook_size(num_items)


def kmeans(
    points: Tensor, num_clusters: int, *, balanced: bool, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: (N, D) -> centroids (K, D), assignment (N,).

    A clustering of more than ``balance.WHOLE`` costs settles its centroids on a sample first.
    """
    centroids = _seed_centroids(points, num_clusters, generator)
    if points.shape[0] * num_clusters <= WHOLE:
        return lloyd(points, centroids, balanced, iterations)[:2]
    prices: Tensor | None = None
    size = FITTING_SAMPLE * num_clusters
    if points.shape[0] > 2 * size:
        few = points[torch.randperm(points.shape[0], generator=generator)[:size]]
        centroids, _, prices = lloyd(few, centroids, balanced, iterations, settled=SETTLED[balanced])
        iterations = min(iterations, LAST_ITERATIONS[balanced])
    return lloyd(points, centroids, balanced, iterations, prices, settled=SETTLED[balanced])[:2]


def lloyd(
    points: Tensor,
    centroids: Tensor,
    balanced: bool,
    iterations: int,
    prices: Tensor | None = None,
    settled: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From centroids on: those of the least error, its assignment, and the prices (K,) of the last one."""
    capacity = -(-points.shape[0] // centroids.shape[0])
    squares = float(points.square().sum(dtype=torch.float64))
    assignment = torch.full((points.shape[0],), -1)
    best_error, best, errors = float("inf"), (centroids, assignment), list[float]()
    for _ in range(iterations + 1):
        previous = assignment
        if balanced:
            assignment, prices = balanced_assign(points, centroids, capacity, prices)
            error = reconstruction_error(points, centroids, assignment)
        else:
            assignment, costs = nearest_costs(points, centroids)
            error = squares + 2 * float(costs.sum(dtype=torch.float64))
        if error < best_error:  # the balanced assignment is approximate: an iteration can make things worse
            best_error, best = error, (centroids, assignment)
        errors.append(best_error)
        if torch.equal(assignment, previous) or (len(errors) > 3 and errors[-4] - best_error < settled * best_error):
            break
        centroids = _update(points, assignment, centroids)
    return *best, prices


def _update(points: Tensor, assignment: Tensor, centroids: Tensor) -> Tensor:
    """Means of the clusters; an empty one restarts at the point farthest from its centroid."""
    num_clusters = centroids.shape[0]
    counts = torch.bincount(assignment, minlength=num_clusters)  # (K,)
    means = torch.zeros_like(centroids).index_add_(0, assignment, points) / counts.clamp(min=1).unsqueeze(1)
    empty = (counts == 0).nonzero().squeeze(1)
    if empty.numel():
        error = (points - means[assignment]).square().sum(1)  # (N,)
        means[empty] = points[error.topk(empty.numel()).indices]
    return means


def _seed_centroids(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ on a sample: far points are likelier to become seeds."""
    num_points = points.shape[0]
    size = min(max(64 * num_clusters, 4096), max(SEEDING_POOL, num_clusters))
    sample = torch.randperm(num_points, generator=generator)[:size]
    if num_clusters > SEEDING_LIMIT:
        return points[sample[:num_clusters]].clone()
    pool = points[sample]  # (S, D)
    squares = pool.square().sum(1)  # (S,)
    chosen = [0]
    error = (pool - pool[0]).square().sum(1)  # (S,) to the nearest seed so far
    for _ in range(num_clusters - 1):
        weights = error.clamp(min=0) if float(error.sum()) > 0 else torch.ones_like(error)
        candidates = torch.multinomial(
            weights, 4, replacement=True, generator=generator
        )  # the best of four, as sklearn
        distance = torch.addmm(squares, pool[candidates], pool.T, alpha=-2.0)  # (4, S)
        distance = (distance + squares[candidates, None]).clamp(min=0)
        lowered = torch.minimum(error, distance)
        best = int(lowered.sum(1).argmin())
        chosen.append(int(candidates[best]))
        error = lowered[best]
    return pool[chosen].clone()


def reconstruction_error(points: Tensor, centroids: Tensor, assignment: Tensor) -> float:
    """Sum of squared distances to the assigned centroids."""
    total = 0.0
    for rows in chunk_rows(points.shape[0], points.shape[1]):
        total += float((points[rows] - centroids[assignment[rows]]).square().sum(dtype=torch.float64))
    return total
