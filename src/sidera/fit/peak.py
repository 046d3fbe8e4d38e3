"""The peak that an MFU is measured against: the best rate of a large matrix product on this device, here and now.

A data sheet's peak is out of reach on a CPU (clocks, threads and vector units differ from what it assumes), so the
denominator is a measured one: square products of 1,024 (CPU) or 8,192 (CUDA) in the training's precision and with its
threads, best of several. A training beside other work on the same machine gets a lower MFU: its wall time is shared.
"""

from __future__ import annotations

import platform
import time
from functools import cache

import torch

SECONDS = 0.15  # spent on the measurement, after one product that warms up
SIDE = {"cpu": 1024, "cuda": 8192}


def emulates_bf16(device: torch.device | str) -> bool:
    """Whether products in bf16 are slower here than in f32: an x86 CPU with neither AVX512-BF16 nor AMX."""
    if torch.device(device).type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def measured_tflops(device: torch.device, precision: str = "f32") -> float:
    """TFLOP/s of the best product; measured once per device, precision and number of threads."""
    return _measure(device.type, device.index, precision, torch.get_num_threads())


@cache
def _measure(kind: str, index: int | None, precision: str, num_threads: int) -> float:
    device = torch.device(kind if index is None else f"{kind}:{index}")
    side = SIDE.get(kind, 1024)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # written out, not drawn: a training's random numbers must not depend on whether its MFU was asked for
    ramp = torch.arange(side, device=device, dtype=torch.float32) / side
    left = (ramp[:, None] - ramp[None, :]).to(dtype)
    best, spent = float("inf"), -1.0  # the first product is not counted
    while spent < SECONDS:
        started = time.perf_counter()
        left @ left
        if kind == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        if spent < 0:
            spent = 0.0
            continue
        best, spent = min(best, seconds), spent + seconds
    return 2 * side**3 / best / 1e12
