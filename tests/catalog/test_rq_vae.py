"""RQ-KMeans+: RQ-VAE whose networks add to what they read begins as residual k-means and gets better than that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sidera.catalog.rq_vae import RQVAE
from sidera.core import InputError

VECTORS = torch.randn(80, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
CONFIG = RQVAE.Config(num_levels=2, codebook_size=6, hidden=(16,), steps=1, batch_size=80, lr=1e-12, skip=True)


def error(quantizer: RQVAE) -> float:
    return float((quantizer.decode(quantizer.encode(VECTORS)) - VECTORS).square().mean())


def test_it_begins_as_residual_k_means_of_the_vectors() -> None:
    quantizer, codes = RQVAE.fit(VECTORS, CONFIG, seed=0)
    networks = quantizer.networks
    torch.testing.assert_close(networks.latents(VECTORS), (VECTORS - networks.mean) / networks.scale)
    first, second = quantizer.code_vectors(0), quantizer.code_vectors(1)
    said = (first[codes[:, 0]] + second[codes[:, 1]]) * networks.scale + networks.mean
    torch.testing.assert_close(quantizer.decode(codes), said)
    assert first.shape == (6, 8)  # as wide as a vector, whatever ``latent`` says
    one_level = ((first[codes[:, 0]] * networks.scale + networks.mean) - VECTORS).square().mean()
    assert error(quantizer) < float(one_level) < float(VECTORS.var(0).mean())


def test_training_makes_it_better_than_its_start() -> None:
    trained, _ = RQVAE.fit(VECTORS, replace(CONFIG, steps=150, lr=5e-3), seed=0)
    assert error(trained) < 0.9 * error(RQVAE.fit(VECTORS, CONFIG, seed=0)[0])


def test_it_is_saved_whole_and_fits_its_vectors() -> None:
    quantizer, codes = RQVAE.fit(VECTORS, replace(CONFIG, steps=20, lr=5e-3), seed=0)
    state = quantizer.state()
    assert torch.equal(RQVAE.from_state(state).encode(VECTORS), codes)
    assert torch.equal(RQVAE.from_state(state).decode(codes), quantizer.decode(codes))
    plain, _ = RQVAE.fit(VECTORS, replace(CONFIG, skip=False, latent=4), seed=0)
    assert "skip" not in plain.state()
    with pytest.raises(InputError, match="4 numbers"):
        RQVAE.from_state({**plain.state(), "skip": torch.ones(())})
