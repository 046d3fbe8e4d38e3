"""RQ-VAE: residual codes of a latent that is learned with them (Zeghidour et al. 2021; TIGER, arXiv 2305.05065).

A perceptron makes a latent of a vector, residual codes make a sum of it, another perceptron makes the vector again. The
codebooks start as the k-means of the first batch's residuals and follow the means of what is assigned to them
(exponential moving averages, van den Oord et al. 2017); a code that is hardly used begins again at a residual of the
batch. The latent is drawn towards its code by the commitment loss, and gradients pass straight through.

``skip`` makes RQ-KMeans+ of it (GPR, arXiv 2511.10138): the perceptrons add to what they read, at first nothing. So the
training begins with RQ-KMeans itself, on the vectors, and moves vectors and codebooks towards each other from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.autoencoder import AutoEncoded, AutoEncoder, TrainedConfig, train_autoencoder
from sidera.catalog.kmeans import checked_codebook_size, kmeans
from sidera.catalog.nearest import nearest
from sidera.catalog.rq_kmeans import RQKMeans
from sidera.catalog.states import StateReader
from sidera.config import check_counts, check_value, later
from sidera.ops.trie import MAX_CODES

START_ITERATIONS = 10  # of Lloyd's algorithm on the first batch
RESET_EVERY = 20  # steps between two looks for dead codes
DEAD_BELOW = 0.05  # of the mean use: such a code begins again
LAST_RESET = 0.8  # of the steps: later every code keeps its place


@dataclass(frozen=True)
class RQVAE(AutoEncoded):
    """Perceptrons around residual codebooks."""

    @dataclass(frozen=True)
    class Config(TrainedConfig):
        codebook_size: int = 256  # codes a level; 0: chosen from the number of items
        latent: int = 32  # dims of the latent that the codes make
        commitment: float = 0.25  # weight of the loss that draws a latent to its codes
        skip: bool = later(False)  # RQ-KMeans+: latent = vector + what the encoder says of it; ``latent`` is not read
        decay: float = 0.95  # of the moving means that the codes follow

        def __post_init__(self) -> None:
            super().__post_init__()
            section, size = "[catalog.quantizer]", self.codebook_size
            check_value(section, "codebook_size", size, 0 <= size <= MAX_CODES, f"0..{MAX_CODES}")
            check_counts(section, self, "latent")
            check_value(section, "commitment", self.commitment, 0 <= self.commitment < 100, "0 <= x < 100")
            check_value(section, "decay", self.decay, 0 < self.decay < 1, "above 0, below 1")

    codes: RQKMeans  # of latents

    @classmethod
    def fit(cls, vectors: Tensor, config: RQVAE.Config, seed: int) -> tuple[RQVAE, Tensor]:
        """(N, D) -> networks and codebooks, and the codes (N, L) of the vectors."""
        width = vectors.shape[1] if config.skip else config.latent
        bottleneck = ResidualBottleneck(config, checked_codebook_size(config.codebook_size, len(vectors)), width)
        networks = train_autoencoder(vectors, bottleneck, config, seed, config.skip)
        quantizer = cls(networks, RQKMeans(tuple(bottleneck.levels)))
        return quantizer, quantizer.encode(vectors)

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64."""
        return self.codes.encode(self.networks.latents(vectors))

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(l,), (n, D) -> (n, K): half the squared distance in the latents, less a constant a row."""
        return self.codes.next_costs(prefix, self.networks.latents(vectors))

    def state(self) -> dict[str, Tensor]:
        return {**self.networks.state(), **self.codes.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RQVAE:
        reader = StateReader(state)
        codes = RQKMeans.from_state({f"codebook.{name}": one for name, one in reader.below("codebook.").items()})
        networks = AutoEncoder.read(reader, codes.dim)
        reader.done()
        return cls(networks, codes)


class ResidualBottleneck:
    """Codebooks that follow what is assigned to them."""

    def __init__(self, config: RQVAE.Config, size: int, width: int) -> None:
        self.config, self.size, self.width = config, size, width
        self.levels: list[Tensor] = []  # L of (K, d)
        self._counts: list[Tensor] = []  # L of (K,) moving use of each code
        self._sums: list[Tensor] = []  # L of (K, d) moving sum of what it was used for
        self._last: list[tuple[Tensor, Tensor]] = []  # of the step: residuals (B, d) and codes (B,) of each level
        self._steps = 0

    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Codebooks by k-means, level by level."""
        residual, use = latents, self.config.batch_size / len(latents)
        for _ in range(self.config.num_levels):
            level, code = kmeans(residual, self.size, balanced=False, iterations=START_ITERATIONS, generator=generator)
            counts = torch.bincount(code, minlength=self.size).float().clamp(min=1) * use
            self.levels.append(level)
            self._counts.append(counts)
            self._sums.append(level * counts[:, None])
            residual = residual - level[code]

    def quantized(self, latents: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        residual, total = latents, torch.zeros_like(latents)
        commitment, self._last = latents.new_zeros(()), []
        for place, level in enumerate(self.levels):
            code = nearest(residual.detach(), level)
            self._last.append((residual.detach(), code))
            chosen = level[code]
            commitment = commitment + (residual - chosen).square().mean()
            residual = residual - chosen
            total = total + torch.where((depths > place)[:, None], chosen, 0.0)
        through = torch.where((depths > 0)[:, None], latents, 0.0)
        return through + (total - through).detach(), self.config.commitment * commitment

    def after_step(self, progress: float, generator: torch.Generator) -> None:
        self._steps += 1
        decay = self.config.decay
        for place, (residual, code) in enumerate(self._last):
            counts, sums = self._counts[place], self._sums[place]
            counts.mul_(decay).add_(torch.bincount(code, minlength=self.size), alpha=1 - decay)
            sums.mul_(decay).index_add_(0, code, residual, alpha=1 - decay)
            if self._steps % RESET_EVERY == 0 and progress < LAST_RESET:
                self._revive(counts, sums, residual, generator)
            self.levels[place] = sums / counts[:, None].clamp(min=1e-6)

    def _revive(self, counts: Tensor, sums: Tensor, residual: Tensor, generator: torch.Generator) -> None:
        """Codes that are hardly used begin again at residuals of the batch."""
        dead = (counts < DEAD_BELOW * len(residual) / self.size).nonzero().squeeze(1)
        if dead.numel():
            rows = torch.randint(len(residual), (dead.numel(),), generator=generator)
            counts[dead] = len(residual) / self.size
            sums[dead] = residual[rows] * counts[dead][:, None]
