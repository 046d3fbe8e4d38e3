"""An encoder and a decoder that a bottleneck of codes is trained between: what RQ-VAE, FSQ and LFQ share.

Two small perceptrons, trained by AdamW on batches drawn with replacement. What is lost in the middle is up to the
bottleneck, which passes gradients straight through. A share of the rows is rebuilt from the first codes alone, so that
a prefix of codes says something of a vector (as the quantizer dropout of SoundStream, arXiv 2107.03312).

Shape legend: N items · B rows of a batch · D numbers of a vector · d numbers of a latent · L levels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.catalog.product_codes import ProductCodes
from sidera.catalog.rq_kmeans import RQKMeans
from sidera.catalog.states import StateReader
from sidera.config import check_counts, check_value
from sidera.core import InputError

FIRST_BATCH = 20_000  # rows that a bottleneck starts from, at most
WARMUP_SHARE = 0.05  # of the steps, over which the learning rate rises; it falls as a cosine then
LARGEST_GRADIENT = 1.0  # norm


@dataclass(frozen=True)
class TrainedConfig:
    """Keys of every quantizer that is trained by steps."""

    num_levels: int = 3  # a collision policy may add one
    hidden: tuple[int, ...] = (256,)  # dims of the layers between a vector and its latent, and back
    steps: int = 3000  # optimizer steps
    batch_size: int = 1024  # items a step
    lr: float = 2e-3  # learning rate of AdamW at its highest
    prefix_share: float = 0.2  # of the rows that are rebuilt from their first codes alone

    def __post_init__(self) -> None:
        section = "[catalog.quantizer]"
        check_value(section, "num_levels", self.num_levels, 1 <= self.num_levels <= 64, "1..64")
        good = all(1 <= width <= 8192 for width in self.hidden) and len(self.hidden) <= 8
        check_value(section, "hidden", self.hidden, good, "at most 8 widths from 1 to 8192")
        check_counts(section, self, "steps", "batch_size")
        check_value(section, "lr", self.lr, 0 < self.lr < 1, "above 0, below 1")
        check_value(section, "prefix_share", self.prefix_share, 0 <= self.prefix_share < 1, "0 <= x < 1")


class Bottleneck(Protocol):
    """What makes codes of latents while the networks around it are trained."""

    @property
    def width(self) -> int:
        """d."""

    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Look at the latents (n, d) of the first rows."""

    def quantized(self, latents: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d), (B,) levels that count -> (B, d) with gradients to the latents, and a loss of its own."""

    def after_step(self, progress: float, generator: torch.Generator) -> None:
        """``progress``: share of the steps that are done."""


@dataclass(frozen=True)
class AutoEncoder:
    """Two perceptrons with ReLU; vectors are centred and scaled before, and back after.

    ``skip``: each adds to what it reads, so a latent is as wide as a vector.
    """

    mean: Tensor  # (D,)
    scale: Tensor  # () of the numbers around the mean
    encoder: tuple[Tensor, ...]  # weight (out, in) and bias (out,) of each layer, in turn
    decoder: tuple[Tensor, ...]
    skip: bool = False

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def width(self) -> int:
        """d."""
        return len(self.encoder[-1])

    def latents(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, d)"""
        return perceptron(self.encoder, (vectors - self.mean) / self.scale, self.skip)

    def vectors(self, latents: Tensor) -> Tensor:
        """(n, d) -> (n, D)"""
        return perceptron(self.decoder, latents, self.skip) * self.scale + self.mean

    def state(self) -> dict[str, Tensor]:
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        layers = {f"{name}.{place}": one for name, side in sides.items() for place, one in enumerate(side)}
        return {"mean": self.mean, "scale": self.scale, **layers, **({"skip": torch.ones(())} if self.skip else {})}

    @classmethod
    def read(cls, reader: StateReader, width: int) -> AutoEncoder:
        """From a saved state; ``width``: d of the bottleneck."""
        mean, scale = reader.take("mean", None), reader.take("scale")
        if float(scale) <= 0:
            raise InputError(f"scale of the quantizer = {float(scale)}", allowed="above 0")
        skip = reader.has("skip") and bool(reader.take("skip"))
        if skip and width != len(mean):
            raise InputError(f"a latent of the quantizer has {width} numbers", allowed=f"{len(mean)}, as a vector")
        encoder = _read_layers(reader, "encoder", len(mean), width)
        return cls(mean, scale, encoder, _read_layers(reader, "decoder", width, len(mean)), skip)


@dataclass(frozen=True)
class AutoEncoded:
    """What quantizers with a bottleneck share: codes say a latent, and the decoder makes a vector of it."""

    networks: AutoEncoder
    codes: ProductCodes | RQKMeans  # of latents

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return self.codes.level_sizes

    @property
    def dim(self) -> int:
        return self.networks.dim

    def decode(self, codes: Tensor) -> Tensor:
        """(n, l) -> (n, D): what the decoder makes of the latents that the codes say."""
        return self.networks.vectors(self.codes.decode(codes))

    def code_vectors(self, level: int) -> Tensor:
        """(K, d) what each code of a level says of the latent, zeros elsewhere."""
        return self.codes.code_vectors(level)


def perceptron(layers: tuple[Tensor, ...], rows: Tensor, skip: bool = False) -> Tensor:
    """Weights and biases in turn, ReLU between them; ``skip``: added to the rows."""
    given, pairs = rows, list(zip(layers[::2], layers[1::2], strict=True))
    for place, (weight, bias) in enumerate(pairs):
        rows = F.linear(rows, weight, bias)
        if place < len(pairs) - 1:
            rows = F.relu(rows)
    return given + rows if skip else rows


def train_autoencoder(
    vectors: Tensor, bottleneck: Bottleneck, config: TrainedConfig, seed: int, skip: bool = False
) -> AutoEncoder:
    """(N, D) -> the networks, and the bottleneck as it is at the end. InputError where all vectors are equal.

    ``skip``: the networks add to what they read, at first nothing."""
    mean = vectors.mean(0)
    centred = vectors - mean
    scale = centred.square().mean().sqrt()
    if float(scale) <= 1e-6 * max(1e-6, float(mean.abs().max())):
        raise InputError(
            f"all {len(vectors)} item vectors are equal: there is nothing to learn",
            fix='use other [catalog] vectors, or [catalog.quantizer] name = "rq_kmeans"',
        )
    rows = centred / scale
    generator = torch.Generator().manual_seed(seed * 1009 + 700)
    sizes = [vectors.shape[1], *config.hidden, bottleneck.width]
    encoder, decoder = _random_layers(sizes, generator), _random_layers(sizes[::-1], generator)
    if skip:
        for side in (encoder, decoder):
            side[-2].zero_()
    with torch.no_grad():
        first = torch.randperm(len(rows), generator=generator)[:FIRST_BATCH]
        bottleneck.start(perceptron(encoder, rows[first], skip), generator)
    with torch.enable_grad():
        _train(rows, AutoEncoder(mean, scale, encoder, decoder, skip), bottleneck, config, generator)
    encoder, decoder = (tuple(one.detach() for one in side) for side in (encoder, decoder))
    return AutoEncoder(mean, scale, encoder, decoder, skip)


def _train(
    rows: Tensor, networks: AutoEncoder, bottleneck: Bottleneck, config: TrainedConfig, generator: torch.Generator
) -> None:
    encoder, decoder, skip = networks.encoder, networks.decoder, networks.skip
    weights = [one.requires_grad_() for one in (*encoder, *decoder)]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=1e-4)
    full = torch.full((config.batch_size,), config.num_levels)
    for step in range(config.steps):
        progress = step / config.steps
        rate = min(1.0, progress / WARMUP_SHARE + 1 / config.steps) * (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = config.lr * rate
        batch = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
        shallow = torch.rand(config.batch_size, generator=generator) < config.prefix_share
        some = torch.randint(config.num_levels, (config.batch_size,), generator=generator)
        latents, own_loss = bottleneck.quantized(perceptron(encoder, batch, skip), torch.where(shallow, some, full))
        loss = F.mse_loss(perceptron(decoder, latents, skip), batch) + own_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
        optimizer.step()
        bottleneck.after_step(progress, generator)


def _random_layers(sizes: list[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    layers: list[Tensor] = []
    for inner, outer in itertools.pairwise(sizes):
        bound = math.sqrt(3 / inner)  # variance 1 / inner
        layers += [(torch.rand(outer, inner, generator=generator) * 2 - 1) * bound, torch.zeros(outer)]
    return tuple(layers)


def _read_layers(reader: StateReader, name: str, inner: int, last: int) -> tuple[Tensor, ...]:
    layers: list[Tensor] = []
    while not layers or reader.has(f"{name}.{len(layers)}"):
        weight = reader.take(f"{name}.{len(layers)}", None, inner)
        inner = len(weight)
        layers += [weight, reader.take(f"{name}.{len(layers) + 1}", inner)]
    if inner != last:
        raise InputError(f"the {name} of the quantizer ends with {inner} numbers", allowed=str(last))
    return tuple(layers)
