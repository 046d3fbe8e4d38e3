"""The operations of a T5 layer with hand-written gradients: norm, projection, feed-forward, residual.

Autograd over small torch operations spends much of a CPU step on casts, on zero-filled gradients of slices and on
masks. Here every operation takes and gives packed tensors, runs its products in the number format of its inputs
(bfloat16 in training), keeps sums in float32, and draws its own dropout (:mod:`sidera.ops.dropout`). The body of
attention stands in :mod:`sidera.ops.written_attention`.

Traps: the hidden layer of the feed-forward keeps one tensor for ReLU and dropout together (zero means "no gradient"),
so its kept values are *not* scaled up: the caller scales the matrix that follows.

Shape legend: T tokens of all rows · D width · F feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sidera.nn.product import product
from sidera.ops.dropout import apply_mask, keep_mask, rounded_rate
from sidera.ops.processor import threshold_backward

EPSILON = 1e-6


def unit_rms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(T, D) float32 -> (T, D) in ``dtype`` with unit root mean square per token."""
    return _UnitRMS.apply(x, dtype)


class _UnitRMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()  # (T, 1)
        ctx.save_for_backward(x, inverse)
        return (x * inverse).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        grad, normed = grads[0].to(x.dtype), x * inverse
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.addcmul(normed, along, value=-1).mul_(inverse), None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, K) times weight (N, K) transposed -> (T, N)."""
    return _Linear.apply(x, weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.mm(grads[0], weight), torch.mm(grads[0].t(), x)


def add_dropped(x: Tensor, update: Tensor, rate: float) -> Tensor:
    """x + dropout(update): x (T, D) float32, update (T, D) in the format of the products."""
    return _AddDropped.apply(x, update, rate) if rate else x + update


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, rate: float) -> Tensor:
        kept = keep_mask(x.shape, rate, x.device)
        ctx.save_for_backward(kept)
        ctx.scale, ctx.dtype = 1 / (1 - rounded_rate(rate)), update.dtype
        return apply_mask(update.to(x.dtype), kept, ctx.scale).add_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grads[0], apply_mask(grads[0], kept, ctx.scale).to(ctx.dtype), None


def feed_forward(x: Tensor, up: Tensor, down: Tensor, rate: float) -> Tensor:
    """dropped(relu(x up^T)) down^T, where dropping does not scale. x (T, D), up (F, D), down (D, F) -> (T, D)."""
    return _FeedForward.apply(x, up, down, rate)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, rate: float) -> Tensor:
        hidden = product(x, up, relu=True)  # (T, F)
        if rate:
            hidden.mul_(keep_mask(hidden.shape, rate, x.device).view(torch.int8).to(hidden.dtype))
        ctx.save_for_backward(x, up, down, hidden)
        return product(hidden, down)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, up, down, hidden = ctx.saved_tensors
        grad_hidden = threshold_backward(torch.mm(grads[0], down), hidden)  # zero: inactive or dropped
        return torch.mm(grad_hidden, up), torch.mm(grad_hidden.t(), x), torch.mm(grads[0].t(), hidden), None
