"""RQ-KMeans: residual quantization, one k-means a level (used for semantic IDs by QARM and OneRec).

Level 1 clusters the item vectors, level 2 what level 1 left over (vector minus centroid), and so on. The balanced
variant caps every cluster at ceil(N / K) items, so that no code becomes a catch-all: plain k-means on fused vectors is
known to degenerate by level 3.

Trap: with ``balanced`` an item's code is not always its nearest centroid, so the codes that :func:`fit_rq_kmeans`
returns, and not ``encode``, are the items' codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.balance import WHOLE, balanced_assign
from sidera.catalog.nearest import chunk_rows, half_distances, nearest
from sidera.core import InputError

SEEDING_LIMIT = 1024  # k-means++ is quadratic in K: above this many codes the seeds are a plain sample
SEEDING_POOL = 16384  # points that the seeds are chosen among, at most
FITTING_SAMPLE = 64  # points per cluster that a large balanced clustering is fitted on before it sees all of them
LAST_ITERATIONS = 10  # over all points, once the sample has settled the centroids
SETTLED = 2e-4  # a large balanced clustering whose error fell by less in three iterations is done


@dataclass(frozen=True)
class RQCodebooks:
    """The vectors that the digits of a semantic ID index."""

    levels: tuple[Tensor, ...]  # L times (K_l, D) float32

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return tuple(level.shape[0] for level in self.levels)

    @property
    def dim(self) -> int:
        return self.levels[0].shape[1]

    def encode(self, vectors: Tensor) -> Tensor:
        """Nearest code, level by level. (N, D) -> (N, L) int64."""
        residual, codes = vectors, []
        for level in self.levels:
            code = nearest(residual, level)
            codes.append(code)
            residual = residual - level[code]
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the code vectors. (N, L) -> (N, D); fewer levels than L give the coarser vector."""
        total = torch.zeros(codes.shape[0], self.dim)
        for level, code in zip(self.levels, codes.unbind(dim=1), strict=False):
            total += level[code]
        return total

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(n, D) vectors that share a prefix (l,) -> (n, K): half the squared distance of what the prefix leaves over
        to each code of the next level, less a constant a row."""
        residual = vectors
        for level, code in zip(self.levels, prefix, strict=False):
            residual = residual - level[code]
        level = self.levels[len(prefix)]
        return half_distances(residual, level, level.square().sum(1) / 2)

    def state(self) -> dict[str, Tensor]:
        return {f"codebook.{index}": level.contiguous() for index, level in enumerate(self.levels)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RQCodebooks:
        names = sorted((name for name in state if name.startswith("codebook.")), key=lambda name: int(name[9:]))
        return cls(tuple(state[name] for name in names))


def fit_rq_kmeans(
    vectors: Tensor, num_levels: int, codebook_size: int, *, balanced: bool = False, iterations: int = 25, seed: int = 0
) -> tuple[RQCodebooks, Tensor]:
    """Codebooks and the codes of the vectors they were fitted on: (N, D) -> codebooks, (N, L) int64."""
    if codebook_size > vectors.shape[0]:
        raise InputError(
            f"codebook_size = {codebook_size} but there are only {vectors.shape[0]} items to cluster",
            allowed=f"1..{vectors.shape[0]}",
            fix="lower [catalog] codebook_size, or set it to 0 to have it chosen",
        )
    residual, levels, codes = vectors, [], []
    for level in range(num_levels):
        generator = torch.Generator().manual_seed(seed * 1009 + level)
        centroids, code = kmeans(residual, codebook_size, balanced=balanced, iterations=iterations, generator=generator)
        levels.append(centroids)
        codes.append(code)
        residual = residual - centroids[code]
    return RQCodebooks(tuple(levels)), torch.stack(codes, dim=1)


def kmeans(
    points: Tensor, num_clusters: int, *, balanced: bool, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: (N, D) -> centroids (K, D), assignment (N,).

    A balanced clustering of more than ``balance.WHOLE`` costs settles its centroids on a sample first.
    """
    centroids = _seed_centroids(points, num_clusters, generator)
    if not balanced or points.shape[0] * num_clusters <= WHOLE:
        return _lloyd(points, centroids, balanced, iterations)[:2]
    prices: Tensor | None = None
    size = FITTING_SAMPLE * num_clusters
    if points.shape[0] > 2 * size:
        few = points[torch.randperm(points.shape[0], generator=generator)[:size]]
        centroids, _, prices = _lloyd(few, centroids, balanced, iterations, settled=SETTLED)
        iterations = min(iterations, LAST_ITERATIONS)
    return _lloyd(points, centroids, balanced, iterations, prices, settled=SETTLED)[:2]


def _lloyd(
    points: Tensor,
    centroids: Tensor,
    balanced: bool,
    iterations: int,
    prices: Tensor | None = None,
    settled: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From centroids on: those of the least error, its assignment, and the prices (K,) of the last one."""
    capacity = -(-points.shape[0] // centroids.shape[0])
    assignment = torch.full((points.shape[0],), -1)
    best_error, best, errors = float("inf"), (centroids, assignment), list[float]()
    for _ in range(iterations + 1):
        previous = assignment
        if balanced:
            assignment, prices = balanced_assign(points, centroids, capacity, prices)
        else:
            assignment = nearest(points, centroids)
        error = reconstruction_error(points, centroids, assignment)
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
    chosen = [0]
    error = (pool - pool[0]).square().sum(1)  # (S,) to the nearest seed so far
    for _ in range(num_clusters - 1):
        weights = error.clamp(min=0) if float(error.sum()) > 0 else torch.ones_like(error)
        candidates = torch.multinomial(
            weights, 4, replacement=True, generator=generator
        )  # the best of four, as sklearn
        distance = torch.cdist(pool[candidates], pool).square()  # (4, S)
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
