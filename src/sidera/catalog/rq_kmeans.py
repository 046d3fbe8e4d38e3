"""RQ-KMeans: residual quantization, one k-means a level (used for semantic IDs by QARM and OneRec).

Level 1 clusters the item vectors, level 2 what level 1 left over (vector minus centroid), and so on. The balanced
variant (OneRec v1) caps every cluster at ceil(N / K) items, so that no code becomes a catch-all: plain k-means on fused
vectors is known to degenerate by level 3.

Trap: with ``balanced`` an item's code is not always its nearest centroid, so the codes that :func:`fit_rq_kmeans`
returns, and not ``encode``, are the items' codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.kmeans import checked_codebook_size, kmeans
from sidera.catalog.nearest import half_distances, nearest
from sidera.catalog.states import StateReader
from sidera.config import check_value
from sidera.ops.trie import MAX_CODES


@dataclass(frozen=True)
class RQKMeans:
    """The vectors that the digits of a semantic ID index."""

    @dataclass(frozen=True)
    class Config:
        num_levels: int = 3  # a collision policy may add one
        codebook_size: int = 256  # codes a level; 0: chosen from the number of items
        balanced: bool = False  # every code of a level names at most ceil(N / codebook_size) items
        iterations: int = 25  # of Lloyd's algorithm

        def __post_init__(self) -> None:
            for name, low, high in (("num_levels", 1, 16), ("codebook_size", 0, MAX_CODES), ("iterations", 1, 1000)):
                value = getattr(self, name)
                check_value("[catalog.quantizer]", name, value, low <= value <= high, f"{low}..{high}")

    levels: tuple[Tensor, ...]  # L times (K_l, D) float32

    @classmethod
    def fit(cls, vectors: Tensor, config: Config, seed: int) -> tuple[RQKMeans, Tensor]:
        """(N, D) -> codebooks, and the codes (N, L) of the vectors."""
        return fit_rq_kmeans(
            vectors, config.num_levels, config.codebook_size, balanced=config.balanced, iterations=config.iterations,
            seed=seed,
        )  # fmt: skip

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

    def code_vectors(self, level: int) -> Tensor:
        """(K, D) what each code of a level adds."""
        return self.levels[level]

    def state(self) -> dict[str, Tensor]:
        return {f"codebook.{index}": level.contiguous() for index, level in enumerate(self.levels)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RQKMeans:
        reader = StateReader(state)
        levels = reader.take_list("codebook", None, None)
        reader.done()
        return cls(levels)


def fit_rq_kmeans(
    vectors: Tensor, num_levels: int, codebook_size: int, *, balanced: bool = False, iterations: int = 25, seed: int = 0
) -> tuple[RQKMeans, Tensor]:
    """Codebooks and the codes of the vectors they were fitted on: (N, D) -> codebooks, (N, L) int64."""
    codebook_size = checked_codebook_size(codebook_size, vectors.shape[0])
    residual, levels, codes = vectors, [], []
    for level in range(num_levels):
        generator = torch.Generator().manual_seed(seed * 1009 + level)
        centroids, code = kmeans(residual, codebook_size, balanced=balanced, iterations=iterations, generator=generator)
        levels.append(centroids)
        codes.append(code)
        residual = residual - centroids[code]
    return RQKMeans(tuple(levels)), torch.stack(codes, dim=1)
