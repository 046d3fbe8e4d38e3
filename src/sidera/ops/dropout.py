"""Dropout whose random bits are cheap on the CPU.

``torch.nn.Dropout`` draws one Bernoulli number per element there, which costs a quarter to a third of a small model's
training step. This one draws 64-bit words and uses every byte of them: seven bits of a byte against a threshold. The
rate is therefore rounded to a multiple of 1/128, and the kept values are scaled by the rate that is really used, so
expectations hold exactly. The words come from torch's generator: restoring the RNG state replays the masks, which
resuming depends on. On other devices it is ``torch.nn.functional.dropout``.

Trap: the threshold test runs on whole words (eight lanes at once), so the lanes' eighth bit is cleared first; without
that a carry would run into the neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 128  # the rate is a multiple of 1 / LANES
ONES = 0x0101010101010101  # one in every byte


def rounded_rate(rate: float) -> float:
    """The rate that the CPU path uses for ``rate``: the nearest multiple of 1/128, never 1."""
    return min(round(rate * LANES), LANES - 1) / LANES


def keep_mask(shape: Sequence[int], rate: float, device: torch.device | str = "cpu") -> Tensor:
    """Boolean tensor, True with probability ``1 - rounded_rate(rate)``, from torch's default generator."""
    keep = LANES - round(rounded_rate(rate) * LANES)  # of 128
    if torch.device(device).type != "cpu":
        return torch.randint(LANES, tuple(shape), dtype=torch.uint8, device=device) < keep
    num_elements = torch.Size(shape).numel()
    words = torch.empty((num_elements + 7) // 8, dtype=torch.int64)
    words.random_(-(2**63), None)
    words.bitwise_and_(0x7F * ONES).add_(keep * ONES)  # lane's top bit: set when its seven bits + keep reach 128
    words.bitwise_right_shift_(7).bitwise_and_(ONES)  # every byte 0 or 1, which is how torch stores bool
    return words.view(torch.bool)[:num_elements].view(tuple(shape))


def apply_mask(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """``x * kept * scale``. Converting the mask first is four times faster than multiplying by a bool tensor."""
    return torch.mul(x, kept.view(torch.int8).to(x.dtype)).mul_(scale)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept = keep_mask(x.shape, rate)
        ctx.save_for_backward(kept)
        ctx.scale = 1.0 / (1.0 - rounded_rate(rate))
        return apply_mask(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return apply_mask(grads[0], kept, ctx.scale), None


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """``x`` with a share ``rate`` of its elements zeroed and the rest scaled up; ``x`` itself when not training."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    return _Dropped.apply(x, rate)
