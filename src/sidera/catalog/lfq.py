"""LFQ: lookup-free quantization (Yu et al. 2023, MAGVIT-2, arXiv 2310.05737), a few signs a level.

A perceptron makes ``bits`` numbers for each level, and a level's code is the pattern of their signs. A loss makes each
item sure of its code and all items together use all codes: the entropy of a code given the item, less the entropy of
the codes of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.catalog.autoencoder import AutoEncoded, AutoEncoder, TrainedConfig, train_autoencoder
from sidera.catalog.product_codes import ProductCodes, grid
from sidera.catalog.states import StateReader
from sidera.config import check_value
from sidera.core import InputError

SIGNS = (-1.0, 1.0)


@dataclass(frozen=True)
class LFQ(AutoEncoded):
    """Perceptrons around signs."""

    @dataclass(frozen=True)
    class Config(TrainedConfig):
        bits: int = 8  # signs a level; it has 2 to the power of it codes
        entropy: float = 0.1  # weight of the loss that makes codes sure and equally used
        commitment: float = 0.25  # weight of the loss that draws numbers to their signs

        def __post_init__(self) -> None:
            super().__post_init__()
            section = "[catalog.quantizer]"
            check_value(section, "bits", self.bits, 1 <= self.bits <= 14, "1..14")
            check_value(section, "entropy", self.entropy, 0 <= self.entropy < 100, "0 <= x < 100")
            check_value(section, "commitment", self.commitment, 0 <= self.commitment < 100, "0 <= x < 100")

    codes: ProductCodes

    @classmethod
    def fit(cls, vectors: Tensor, config: LFQ.Config, seed: int) -> tuple[LFQ, Tensor]:
        """(N, D) -> networks, and the codes (N, L) of the vectors."""
        networks = train_autoencoder(vectors, SignBottleneck(config), config, seed)
        quantizer = cls(networks, ProductCodes((patterns(config.bits),) * config.num_levels))
        return quantizer, quantizer.encode(vectors)

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64."""
        return self.codes.encode(self.networks.latents(vectors))

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(l,), (n, D) -> (n, K): half the squared distance of the level's numbers, less a constant a row."""
        return self.codes.next_costs(len(prefix), self.networks.latents(vectors))

    def state(self) -> dict[str, Tensor]:
        return {**self.networks.state(), "bits": torch.tensor(float(self.codes.widths[0]))}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> LFQ:
        reader = StateReader(state)
        bits = float(reader.take("bits"))
        if bits not in range(1, 15):
            raise InputError(f"bits of the quantizer = {bits}", allowed="1..14")
        last = [name for name in state if name.startswith("encoder.")]
        width = len(state[f"encoder.{len(last) - 1}"]) if f"encoder.{len(last) - 1}" in state else 0
        networks = AutoEncoder.read(reader, width)
        reader.done()
        if not width or width % int(bits):
            raise InputError(f"{width} numbers of the quantizer in levels of {int(bits)} signs", allowed="a multiple")
        return cls(networks, ProductCodes((patterns(int(bits)),) * (width // int(bits))))


class SignBottleneck:
    """Takes signs."""

    def __init__(self, config: LFQ.Config) -> None:
        self.config, self.width = config, config.bits * config.num_levels
        self._level_of = torch.arange(config.num_levels).repeat_interleave(config.bits)  # (d,)
        self._patterns = patterns(config.bits)  # (K, bits)

    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        pass

    def quantized(self, latents: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        signs = torch.where(latents.detach() > 0, 1.0, -1.0)
        through = latents + (signs - latents).detach()
        loss = self.config.commitment * (latents - signs).square().mean()
        if self.config.entropy:
            loss = loss + self.config.entropy * self._entropies(latents)
        return torch.where(depths[:, None] > self._level_of, through, 0.0), loss

    def _entropies(self, latents: Tensor) -> Tensor:
        """Mean over levels of: entropy of an item's code - entropy of the batch's codes, in nats."""
        total = latents.new_zeros(())
        for part in latents.split(self.config.bits, dim=1):
            logs = (2 * part @ self._patterns.T).log_softmax(dim=1)  # (B, K)
            shares = logs.exp()
            mean = shares.mean(0)
            total = total - (shares * logs).sum(1).mean() + (mean * mean.clamp(min=1e-9).log()).sum()
        return total / self.config.num_levels

    def after_step(self, progress: float, generator: torch.Generator) -> None:
        pass


def patterns(bits: int) -> Tensor:
    """(2 ** bits, bits) of -1 and 1."""
    return grid([torch.tensor(SIGNS)] * bits)
