"""How far two tensors are apart, for the checks of ``benchmarks/gpu.py``."""

from __future__ import annotations

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number of ``wanted``; infinite where one of them is not finite.

    In bfloat16 the root mean squares are compared: a single ReLU may open there that is shut in float64.
    """
    halved = found.dtype == torch.bfloat16
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    if halved:
        return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
    scale = max(float(wanted.abs().max()), 1e-12) if wanted.numel() else 1.0
    return float((found - wanted).abs().max()) / scale if wanted.numel() else 0.0


def differs(found: Tensor, wanted: Tensor) -> float:
    """0 for equal ids or masks, 1 otherwise."""
    return float(not torch.equal(found.detach().cpu(), wanted.detach().cpu()))
