"""Codes that each say one part of a vector: the parts stand side by side, and no code depends on another.

Of a prefix the later parts are zeros, so vectors are centred before they are cut.

Shape legend: n vectors · L parts · d_l numbers of a part · K codes of a part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.nearest import half_distances, nearest


@dataclass(frozen=True)
class ProductCodes:
    """One table of vectors a part."""

    parts: tuple[Tensor, ...]  # L of (K_l, d_l) float32

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return tuple(len(part) for part in self.parts)

    @property
    def widths(self) -> list[int]:
        return [part.shape[1] for part in self.parts]

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, sum of d_l) -> (n, L) int64: the nearest code of every part."""
        pieces = vectors.split(self.widths, dim=1)
        return torch.stack([nearest(piece, part) for piece, part in zip(pieces, self.parts, strict=True)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """(n, l) -> (n, sum of d_l), zeros behind the first l parts."""
        pieces = [part[code] for part, code in zip(self.parts, codes.unbind(dim=1), strict=False)]
        rest = [torch.zeros(len(codes), width) for width in self.widths[len(pieces) :]]
        return torch.cat([*pieces, *rest], dim=1)

    def next_costs(self, level: int, vectors: Tensor) -> Tensor:
        """(n, K): half the squared distance of a part to each of its codes, less a constant a row."""
        part = self.parts[level]
        return half_distances(vectors.split(self.widths, dim=1)[level], part, part.square().sum(1) / 2)

    def code_vectors(self, level: int) -> Tensor:
        """(K, sum of d_l) what each code of a part says, zeros elsewhere."""
        found = torch.zeros(len(self.parts[level]), sum(self.widths))
        start = sum(self.widths[:level])
        found[:, start : start + self.widths[level]] = self.parts[level]
        return found


def grid(values: Sequence[Tensor]) -> Tensor:
    """Every combination of the values of each dim, (K, d), K the product of their numbers; the last dim runs first."""
    return torch.cartesian_prod(*values).reshape(math.prod(len(one) for one in values), len(values)).contiguous()
