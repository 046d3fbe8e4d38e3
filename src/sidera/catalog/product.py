"""PQ and OPQ: product quantization, one k-means for each part of the vector.

PQ (Jegou et al. 2011, IEEE TPAMI 33(1)) cuts a vector into parts of neighbouring numbers and clusters each. OPQ (Ge et
al. 2014, IEEE TPAMI 36(4)) turns the vectors first, so that parts are independent and say equally much: it starts from
the principal directions, dealt out so that the products of the variances are balanced, and then fits codebooks and
rotation in turn (the rotation by the orthogonal Procrustes problem).

The codes of an item are unordered: none is coarser than another. They suit decoders that write all codes at once. The
parts stand in order of variance, so that a prefix says as much as it can.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sidera.catalog.kmeans import checked_codebook_size, kmeans, lloyd
from sidera.catalog.product_codes import ProductCodes
from sidera.catalog.states import StateReader
from sidera.config import check_value
from sidera.core import InputError
from sidera.ops.trie import MAX_CODES

ROTATION_SAMPLE = 1 << 16  # vectors that the rotation is learned from, at most
LEARNING_ITERATIONS = 2  # of Lloyd's algorithm between two rotations


@dataclass(frozen=True)
class PQ:
    """A table of vectors for each part of a vector."""

    @dataclass(frozen=True)
    class Config:
        num_levels: int = 3  # parts that the vector is cut into; a collision policy may add a level
        codebook_size: int = 256  # codes a part; 0: chosen from the number of items
        iterations: int = 25  # of Lloyd's algorithm

        def __post_init__(self) -> None:
            for name, low, high in (("num_levels", 1, 64), ("codebook_size", 0, MAX_CODES), ("iterations", 1, 1000)):
                value = getattr(self, name)
                check_value("[catalog.quantizer]", name, value, low <= value <= high, f"{low}..{high}")

    mean: Tensor  # (D,)
    rotation: Tensor  # (D, D) orthonormal: vectors are multiplied by it from the right; of PQ a permutation
    codes: ProductCodes

    @classmethod
    def fit(cls, vectors: Tensor, config: PQ.Config, seed: int) -> tuple[Self, Tensor]:
        """(N, D) -> tables, and the codes (N, L) of the vectors. InputError for fewer numbers than parts."""
        if config.num_levels > vectors.shape[1]:
            raise InputError(
                f"num_levels = {config.num_levels} but a vector has only {vectors.shape[1]} numbers to cut into parts",
                allowed=f"1..{vectors.shape[1]}",
                fix="lower [catalog.quantizer] num_levels, or raise [catalog] vector_dim",
            )
        size = checked_codebook_size(config.codebook_size, len(vectors))
        mean = vectors.mean(0)
        centred = vectors - mean
        rotation = cls.learned_rotation(centred, size, config, seed)
        pieces = (centred @ rotation).split(widths(len(mean), config.num_levels), dim=1)
        parts, codes = [], []
        for level, piece in enumerate(pieces):
            generator = torch.Generator().manual_seed(seed * 1009 + level)
            part, code = kmeans(piece, size, balanced=False, iterations=config.iterations, generator=generator)
            parts.append(part)
            codes.append(code)
        return cls(mean, rotation, ProductCodes(tuple(parts))), torch.stack(codes, dim=1)

    @classmethod
    def learned_rotation(cls, centred: Tensor, size: int, config: Any, seed: int) -> Tensor:
        """(D, D): here the parts as they stand, the one that varies most first."""
        eye = torch.eye(centred.shape[1])
        return eye[:, by_variance(centred.square().mean(0), config.num_levels)].contiguous()

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return self.codes.level_sizes

    @property
    def dim(self) -> int:
        return len(self.mean)

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64."""
        return self.codes.encode((vectors - self.mean) @ self.rotation)

    def decode(self, codes: Tensor) -> Tensor:
        """(n, l) -> (n, D): the parts that the codes say, and the mean of the others."""
        return self.codes.decode(codes) @ self.rotation.T + self.mean

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(l,), (n, D) -> (n, K): half the squared distance of the next part, less a constant a row."""
        return self.codes.next_costs(len(prefix), (vectors - self.mean) @ self.rotation)

    def code_vectors(self, level: int) -> Tensor:
        """(K, D) what each code of a part adds to the mean."""
        return self.codes.code_vectors(level) @ self.rotation.T

    def state(self) -> dict[str, Tensor]:
        parts = {f"part.{level}": part.contiguous() for level, part in enumerate(self.codes.parts)}
        return {"mean": self.mean, "rotation": self.rotation.contiguous(), **parts}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        reader = StateReader(state)
        mean = reader.take("mean", None)
        rotation = reader.take("rotation", len(mean), len(mean))
        count = sum(name.startswith("part.") for name in state)
        if not 1 <= count <= len(mean):
            raise InputError(f"{count} parts of {len(mean)} numbers", allowed=f"1..{len(mean)}")
        parts = [reader.take(f"part.{level}", None, width) for level, width in enumerate(widths(len(mean), count))]
        reader.done()
        return cls(mean, rotation, ProductCodes(tuple(parts)))


@dataclass(frozen=True)
class OPQ(PQ):
    """PQ of vectors that were turned so that it loses least."""

    @dataclass(frozen=True)
    class Config(PQ.Config):
        rotations: int = 20  # times that codebooks and rotation are fitted in turn; 0: the principal directions alone

        def __post_init__(self) -> None:
            super().__post_init__()
            check_value("[catalog.quantizer]", "rotations", self.rotations, 0 <= self.rotations <= 1000, "0..1000")

    @classmethod
    def learned_rotation(cls, centred: Tensor, size: int, config: Any, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1009 + 500)
        if len(centred) > ROTATION_SAMPLE:
            centred = centred[torch.randperm(len(centred), generator=generator)[:ROTATION_SAMPLE]]
            size = min(size, len(centred))
        rotation = principal_rotation(centred, config.num_levels)
        parts: list[Tensor] = []
        for turn in range(config.rotations):
            pieces = (centred @ rotation).split(widths(centred.shape[1], config.num_levels), dim=1)
            if not turn:
                parts = [kmeans(one, size, balanced=False, iterations=5, generator=generator)[0] for one in pieces]
            parts = [lloyd(one, part, False, LEARNING_ITERATIONS)[0] for one, part in zip(pieces, parts, strict=True)]
            codes = ProductCodes(tuple(parts))
            rebuilt = codes.decode(codes.encode(torch.cat(pieces, dim=1)))
            left, _, right = torch.linalg.svd(centred.T @ rebuilt)
            rotation = left @ right
        variance = (centred @ rotation).square().mean(0)
        return rotation[:, by_variance(variance, config.num_levels)].contiguous()


def widths(dim: int, num_parts: int) -> list[int]:
    """Numbers in each of the parts: equally many, the first parts one more where it does not divide."""
    return [dim // num_parts + (part < dim % num_parts) for part in range(num_parts)]


def by_variance(variance: Tensor, num_parts: int) -> Tensor:
    """(D,) variances of the numbers -> (D,) their places when whole parts stand in the order of variance.

    Parts of unequal width are left where they are.
    """
    sizes = widths(len(variance), num_parts)
    places = list(torch.arange(len(variance)).split(sizes))
    if len(set(sizes)) == 1:
        sums = [float(variance[place].sum()) for place in places]
        places = [places[part] for part in sorted(range(num_parts), key=lambda part: -sums[part])]
    return torch.cat(places)


def principal_rotation(centred: Tensor, num_parts: int) -> Tensor:
    """(D, D) principal directions, dealt out to the parts so that the products of their variances are alike."""
    values, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, sizes = values.flip(0).clamp(min=1e-12), widths(centred.shape[1], num_parts)
    dealt: list[list[int]] = [[] for _ in sizes]
    logs = [0.0] * num_parts
    for place, value in enumerate(values.tolist()):  # the largest first, to the part with the smallest product
        part = min((p for p in range(num_parts) if len(dealt[p]) < sizes[p]), key=lambda p: (logs[p], p))
        dealt[part].append(place)
        logs[part] += math.log(value / float(values[-1])) + 1e-9
    return directions.flip(1)[:, list(itertools.chain(*dealt))].contiguous()
