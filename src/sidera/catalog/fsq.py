"""FSQ: finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), one grid of numbers a level.

A perceptron makes a few numbers for each level, tanh bounds them, and each is rounded to one of a few values; a level's
code is the combination. There is no codebook, so none can collapse. Each number's range is cut into equal intervals
whose middles are the values, where the paper rounds to whole numbers.

``rq_fsq`` writes its last level so, after residual k-means: the last level then hardly ever gives two items one code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.autoencoder import AutoEncoded, AutoEncoder, TrainedConfig, train_autoencoder
from sidera.catalog.product_codes import ProductCodes, grid
from sidera.catalog.rq_kmeans import RQKMeans, fit_rq_kmeans
from sidera.catalog.states import StateReader
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.ops.trie import MAX_CODES


def check_grid(sizes: tuple[int, ...]) -> None:
    """InputError for a ``grid`` that is none, or has more combinations than a level may have codes."""
    good = 1 <= len(sizes) <= 16 and all(2 <= size <= MAX_CODES for size in sizes) and math.prod(sizes) <= MAX_CODES
    check_value("[catalog.quantizer]", "grid", sizes, good, f"1 to 16 counts from 2 on, together at most {MAX_CODES}")


@dataclass(frozen=True)
class FSQ(AutoEncoded):
    """Perceptrons around grids."""

    @dataclass(frozen=True)
    class Config(TrainedConfig):
        grid: tuple[int, ...] = (8, 6, 5)  # values of each number of a level; their product is its number of codes

        def __post_init__(self) -> None:
            super().__post_init__()
            check_grid(self.grid)

    codes: ProductCodes
    sizes: tuple[int, ...]  # values of each number of a level

    @classmethod
    def fit(cls, vectors: Tensor, config: FSQ.Config, seed: int) -> tuple[FSQ, Tensor]:
        """(N, D) -> networks, and the codes (N, L) of the vectors."""
        bottleneck = GridBottleneck(config.grid, config.num_levels)
        networks = train_autoencoder(vectors, bottleneck, config, seed)
        quantizer = cls(networks, grid_codes(config.grid, config.num_levels), config.grid)
        return quantizer, quantizer.encode(vectors)

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64."""
        return self.codes.encode(self.networks.latents(vectors).tanh())

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(l,), (n, D) -> (n, K): half the squared distance of the level's bounded numbers, less a constant a row."""
        return self.codes.next_costs(len(prefix), self.networks.latents(vectors).tanh())

    def state(self) -> dict[str, Tensor]:
        shape = torch.tensor([len(self.level_sizes), *self.sizes], dtype=torch.float32)
        return {**self.networks.state(), "grid": shape}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FSQ:
        reader = StateReader(state)
        numbers = reader.take("grid", None)
        num_levels, *sizes = [int(number) for number in numbers.tolist()] or [0]
        if not 1 <= num_levels <= 64 or numbers.frac().any():
            raise InputError(f"grid of the quantizer = {numbers.tolist()}", allowed="whole numbers, levels first")
        check_grid(tuple(sizes))
        networks = AutoEncoder.read(reader, num_levels * len(sizes))
        reader.done()
        return cls(networks, grid_codes(tuple(sizes), num_levels), tuple(sizes))


class GridBottleneck:
    """Bounds and rounds."""

    def __init__(self, sizes: tuple[int, ...], num_levels: int) -> None:
        self.width = len(sizes) * num_levels
        self._sizes = torch.tensor(sizes * num_levels, dtype=torch.float32)  # (d,)
        self._level_of = torch.arange(num_levels).repeat_interleave(len(sizes))  # (d,)

    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        pass

    def quantized(self, latents: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        bounded = latents.tanh()
        step = ((bounded.detach() + 1) / 2 * self._sizes).floor().clamp(min=0).minimum(self._sizes - 1)
        rounded = bounded + ((2 * step + 1) / self._sizes - 1 - bounded).detach()
        return torch.where(depths[:, None] > self._level_of, rounded, 0.0), latents.new_zeros(())

    def after_step(self, progress: float, generator: torch.Generator) -> None:
        pass


def grid_codes(sizes: tuple[int, ...], num_levels: int) -> ProductCodes:
    """Every combination of the numbers' values, on each level."""
    return ProductCodes((grid([middles(size) for size in sizes]),) * num_levels)


def middles(size: int) -> Tensor:
    """(size,) middles of equal intervals of -1..1."""
    return (2 * torch.arange(size) + 1) / size - 1


@dataclass(frozen=True)
class RQFSQ:
    """Residual k-means, and a grid for what its levels leave over."""

    @dataclass(frozen=True)
    class Config:
        num_levels: int = 3  # the last one is the grid; a collision policy may add one
        codebook_size: int = 256  # codes of the other levels; 0: chosen from the number of items
        iterations: int = 25  # of Lloyd's algorithm
        grid: tuple[int, ...] = (8, 6, 5)  # values of each number of the last level
        hidden: tuple[int, ...] = (256,)  # dims of the layers between what is left over and its numbers, and back
        steps: int = 3000  # optimizer steps of the last level
        batch_size: int = 1024  # items a step
        lr: float = 2e-3  # learning rate of AdamW at its highest

        def __post_init__(self) -> None:
            check_value("[catalog.quantizer]", "num_levels", self.num_levels, 2 <= self.num_levels <= 16, "2..16")
            RQKMeans.Config(self.num_levels - 1, self.codebook_size, iterations=self.iterations)
            check_counts("[catalog.quantizer]", self, "steps", "batch_size")
            self.last()

        def last(self) -> FSQ.Config:
            """Of the grid."""
            return FSQ.Config(1, self.hidden, self.steps, self.batch_size, self.lr, 0.0, self.grid)

    first: RQKMeans
    rest: FSQ

    @classmethod
    def fit(cls, vectors: Tensor, config: RQFSQ.Config, seed: int) -> tuple[RQFSQ, Tensor]:
        """(N, D) -> codebooks and networks, and the codes (N, L) of the vectors."""
        first, codes = fit_rq_kmeans(
            vectors, config.num_levels - 1, config.codebook_size, iterations=config.iterations, seed=seed
        )
        rest, last = FSQ.fit(vectors - first.decode(codes), config.last(), seed)
        return cls(first, rest), torch.cat([codes, last], dim=1)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (*self.first.level_sizes, *self.rest.level_sizes)

    @property
    def dim(self) -> int:
        return self.first.dim

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64."""
        codes = self.first.encode(vectors)
        return torch.cat([codes, self.rest.encode(vectors - self.first.decode(codes))], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """(n, l) -> (n, D)."""
        split = len(self.first.levels)
        found = self.first.decode(codes[:, :split])
        return found + self.rest.decode(codes[:, split:]) if codes.shape[1] > split else found

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(l,), (n, D) -> (n, K)."""
        if len(prefix) < len(self.first.levels):
            return self.first.next_costs(prefix, vectors)
        return self.rest.next_costs(prefix[:0], vectors - self.first.decode(prefix[None]))

    def code_vectors(self, level: int) -> Tensor:
        """(K, D) the centroids of a level, or (K, d) the numbers of the grid."""
        return self.first.code_vectors(level) if level < len(self.first.levels) else self.rest.code_vectors(0)

    def state(self) -> dict[str, Tensor]:
        inner = {f"rest.{name}": tensor for name, tensor in self.rest.state().items()}
        return {**self.first.state(), **inner}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RQFSQ:
        reader = StateReader(state)
        rest = FSQ.from_state(reader.below("rest."))
        first = RQKMeans.from_state({f"codebook.{name}": one for name, one in reader.below("codebook.").items()})
        reader.done()
        levels = len(rest.level_sizes)
        if first.dim != rest.dim or levels != 1:
            raise InputError(f"codebooks of {first.dim} numbers and a grid of {rest.dim} on {levels} levels")
        return cls(first, rest)
