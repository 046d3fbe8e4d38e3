"""The peak that an MFU is measured against: the best rate of a large matrix product on this device, here and now.

A data sheet's peak is out of reach on a CPU (clocks, threads and vector units differ from what it assumes), so the
denominator is a measured one: square products of 1,024 (CPU) or 8,192 (CUDA) with the training's threads, best of
several. A training beside other work on the same machine gets a lower MFU: its wall time is shared.

The peak is the *device's*, in whatever way it multiplies best: with either matrix transposed or none, in the training's
precision or in f32. A processor that emulates bf16 does it a hundred times slower one way than another; measured by one
of them alone, a training came out at four times its peak. What a training has reached is a measurement too: a peak
below it (the neighbours were busy while it was measured) rises to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from sidera.ops.processor import emulates_bf16

SECONDS = 0.1  # spent on each measurement, after one product that warms up
SIDE = {"cpu": 1024, "cuda": 8192}

_reached: dict[tuple[str, int | None, str, int], float] = {}


def measured_tflops(device: torch.device, precision: str = "f32", reached: float = 0.0) -> float:
    """TFLOP/s of the best product; measured once per device, precision and number of threads.

    ``reached``: a rate that was seen here, TFLOP/s. The peak is never below it.
    """
    key = (device.type, device.index, precision, torch.get_num_threads())
    _reached[key] = max(_reached.get(key, 0.0), reached)
    return max(_measure(*key), _reached[key])


@cache
def _measure(kind: str, index: int | None, precision: str, num_threads: int) -> float:
    device = torch.device(kind if index is None else f"{kind}:{index}")
    side = SIDE.get(kind, 1024)
    # written out, not drawn: a training's random numbers must not depend on whether its MFU was asked for
    ramp = torch.arange(side, device=device, dtype=torch.float32) / side
    left = ramp[:, None] - ramp[None, :]
    matrices = [left]
    if precision == "bf16" and not emulates_bf16(device):
        matrices.append(left.bfloat16())
    ways: tuple[Callable[[Tensor], Tensor], ...] = (lambda m: m @ m, lambda m: m @ m.t(), lambda m: m.t() @ m)
    best = min(_seconds(way, matrix, device) for matrix in matrices for way in ways)
    return 2 * side**3 / best / 1e12


def _seconds(way: Callable[[Tensor], Tensor], matrix: Tensor, device: torch.device) -> float:
    """The fastest product; the first is not counted."""
    best, spent = float("inf"), -1.0
    while spent < SECONDS:
        started = time.perf_counter()
        way(matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        if spent < 0:
            spent = 0.0
            continue
        best, spent = min(best, seconds), spent + seconds
    return best
