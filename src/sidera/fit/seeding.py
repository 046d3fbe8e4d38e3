"""Randomness by counter: every batch has its own seed, made of (recipe's seed, step, batch of the step, rank).

Why not save and restore generator states: a state says where a stream is, and anything that draws from it in between
(an evaluation, a progress bar's jitter, another thread) moves it. With a seed per batch nothing before the step can
change it, a resumed training needs no generator states, and any step can be run again alone.

The global generators of torch (CPU and CUDA), numpy and Python are seeded, so models just call ``torch.randn`` and
dropout. Ranks have different seeds: dropout masks and sampled negatives of different ranks are independent, which
means that with either of them N ranks train as well as one process, but not on the same numbers.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

EVALUATION = 2**32 - 1  # stands in the place of the rank when the numbers are for an evaluation


def step_seed(seed: int, step: int, micro_batch: int = 0, rank: int = 0) -> int:
    """63 bits that depend on all four numbers; neighbours are unrelated."""
    text = f"{seed}/{step}/{micro_batch}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int, step: int = 0, micro_batch: int = 0, rank: int = 0) -> None:
    """Seed the global generators of torch, numpy and Python for one batch."""
    value = step_seed(seed, step, micro_batch, rank)
    torch.manual_seed(value)  # the CUDA generators too
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is the same on every rank at ``step``, for draws that the ranks have to share."""
    generator = torch.Generator(device=device)
    generator.manual_seed(step_seed(seed, step))
    return generator
