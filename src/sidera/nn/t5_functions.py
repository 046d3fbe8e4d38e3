"""The operations of a T5 layer with hand-written gradients: norm, projection, attention, feed-forward, residual.

Autograd over small torch operations spends much of a CPU step on casts, on zero-filled gradients of slices and on
masks. Here every operation takes and gives packed tensors, runs its products in the number format of its inputs
(bfloat16 in training), keeps sums and softmax in float32, and draws its own dropout (:mod:`sidera.nn.dropout`).

Traps: the hidden layer of the feed-forward keeps one tensor for ReLU and dropout together (zero means "no gradient"),
so its kept values are *not* scaled up: the caller scales the matrix that follows. Attention's bias may hold -inf.

Shape legend: T tokens of all rows · S tokens of a row (q: queries, k: keys) · R rows of a group · H heads · E dims of a
head · D width · F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidera.nn.dropout import apply_mask, keep_mask, rounded_rate
from sidera.nn.product import product
from sidera.ops.processor import softmax_backward, threshold_backward

EPSILON = 1e-6


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of equal length inside a packed tensor."""

    start: int  # first token
    num_rows: int
    length: int  # tokens of each row

    @property
    def end(self) -> int:
        return self.start + self.num_rows * self.length


def equal_length_groups(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Groups of rows whose lengths are sorted (either way)."""
    groups: list[Group] = []
    row, start = 0, 0
    while row < len(lengths):
        length, first = lengths[row], row
        while row < len(lengths) and lengths[row] == length:
            row += 1
        groups.append(Group(start, row - first, length))
        start = groups[-1].end
    return tuple(groups)


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


def packed_attention(
    query: Tensor | None,
    packed: Tensor,
    bias: Tensor | None,
    query_groups: Sequence[Group],
    key_groups: Sequence[Group],
    num_heads: int,
    rate: float,
) -> Tensor:
    """Attention inside each row, unscaled. ``packed`` (Tk, 2*H*E) holds keys and values -> (Tq, H*E).

    With ``query`` None ``packed`` is (T, 3*H*E), queries first. Group i of the queries attends group i of the keys;
    ``bias`` (H, S, S) is cut to each group's length.
    """
    return _PackedAttention.apply(query, packed, bias, tuple(query_groups), tuple(key_groups), num_heads, rate)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor | None,
        packed: Tensor,
        bias: Tensor | None,
        query_groups: tuple[Group, ...],
        key_groups: tuple[Group, ...],
        num_heads: int,
        rate: float,
    ) -> Tensor:
        num_parts = 3 if query is None else 2
        num_tokens = packed.shape[0] if query is None else query.shape[0]
        out = packed.new_empty(num_tokens, packed.shape[1] // num_parts)  # (Tq, H*E)
        saved: list[Tensor | None] = []
        for query_group, key_group in zip(query_groups, key_groups, strict=True):
            parts = _by_head(packed, key_group, num_heads, num_parts)  # (2 or 3, R*H, Sk, E)
            q = parts[0] if query is None else _by_head(query, query_group, num_heads, 1)[0]  # (R*H, Sq, E)
            k, v = parts[-2], parts[-1]
            scores = torch.bmm(q, k.transpose(1, 2)).float()  # (R*H, Sq, Sk)
            shape = (query_group.num_rows, num_heads, query_group.length, key_group.length)
            if bias is not None:
                scores.view(shape).add_(bias[:, : shape[2], : shape[3]])
            weights = scores.softmax(-1)
            kept = keep_mask(weights.shape, rate, weights.device) if rate else None
            dropped = weights if kept is None else apply_mask(weights, kept, 1 / (1 - rounded_rate(rate)))
            dropped = dropped.to(v.dtype)
            _merge_heads([torch.bmm(dropped, v)], out, query_group, num_heads)
            saved += [q, k, v, weights, kept, dropped]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.num_heads, ctx.rate = (query_groups, key_groups), num_heads, rate
        ctx.shapes = (None if query is None else query.shape, packed.shape, None if bias is None else bias.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query_shape, packed_shape, bias_shape = ctx.shapes
        grad, num_heads = grads[0], ctx.num_heads
        grad_packed = grad.new_empty(packed_shape)
        grad_query = None if query_shape is None else grad.new_empty(query_shape)
        grad_bias = None if bias_shape is None else grad.new_zeros(bias_shape, dtype=torch.float32)
        saved = ctx.saved_tensors
        for index, (query_group, key_group) in enumerate(zip(*ctx.groups, strict=True)):
            q, k, v, weights, kept, dropped = saved[6 * index : 6 * index + 6]
            grad_out = _by_head(grad, query_group, num_heads, 1)[0]  # (R*H, Sq, E)
            grad_weights = torch.bmm(grad_out, v.transpose(1, 2)).to(weights.dtype)  # (R*H, Sq, Sk)
            if kept is not None:
                grad_weights = apply_mask(grad_weights, kept, 1 / (1 - rounded_rate(ctx.rate)))
            grad_scores = softmax_backward(grad_weights, weights)
            if grad_bias is not None:
                shape = (query_group.num_rows, num_heads, query_group.length, key_group.length)
                grad_bias[:, : shape[2], : shape[3]] += grad_scores.view(shape).sum(0)
            grad_scores = grad_scores.to(q.dtype)
            grad_v = torch.bmm(dropped.transpose(1, 2), grad_out)
            grad_k, grad_q = torch.bmm(grad_scores.transpose(1, 2), q), torch.bmm(grad_scores, k)
            if grad_query is None:
                _merge_heads([grad_q, grad_k, grad_v], grad_packed, key_group, num_heads)
            else:
                _merge_heads([grad_q], grad_query, query_group, num_heads)
                _merge_heads([grad_k, grad_v], grad_packed, key_group, num_heads)
        return grad_query, grad_packed, grad_bias, None, None, None, None


def _by_head(packed: Tensor, group: Group, num_heads: int, num_parts: int) -> Tensor:
    """A matrix per row and head, for parts that stand side by side: (T, P*H*E) -> (P, R*H, S, E)."""
    rows = packed[group.start : group.end].view(group.num_rows, group.length, num_parts, num_heads, -1)
    return rows.permute(2, 0, 3, 1, 4).reshape(num_parts, -1, group.length, rows.shape[-1])


def _merge_heads(parts: Sequence[Tensor], out: Tensor, group: Group, num_heads: int) -> None:
    """Write P parts (R*H, S, E) side by side into the group's rows of ``out`` (T, P*H*E)."""
    rows = out[group.start : group.end].view(group.num_rows, group.length, len(parts), num_heads, -1)
    for index, part in enumerate(parts):
        rows[:, :, index] = part.view(group.num_rows, num_heads, group.length, -1).transpose(1, 2)
