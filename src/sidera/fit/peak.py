"""The peak that an MFU is measured against: the best rate of a large matrix product on this device, here and now.

A data sheet's peak is out of reach on a CPU (clocks, threads and vector units differ from what it assumes), so the
denominator is a measured one: square products of 1,024 (CPU) or 8,192 (CUDA) in the training's precision and with its
threads, best of several. A training beside other work on the same machine gets a lower MFU: its wall time is shared.
"""

from __future__ import annotations

import time
from functools import cache

import torch

SECONDS = 0.15  # spent on the measurement, after one product that warms up
SIDE = {"cpu": 1024, "cuda": 8192}


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
