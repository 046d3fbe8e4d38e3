"""Attention of neighbouring rows of equal length, its gradients written by hand: T5's body, on any device.

Autograd over small torch operations spends much of a CPU step on casts, on zero-filled gradients of slices and on
masks. Here the products run in the number format of the inputs (bfloat16 in training), scores and softmax in float32,
and dropout draws its own bits (:mod:`sidera.ops.dropout`). Weights are kept for the backward pass.

Shape legend: T tokens of all rows · R rows of a group · S tokens of a row (q: queries, k: keys) · H heads · E dims of a
head · P parts that stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidera.ops.dropout import apply_mask, keep_mask, rounded_rate
from sidera.ops.processor import softmax_backward

# per group: its first query, its first key, its number of rows, queries of a row, keys of a row
Written = list[tuple[int, int, int, int, int]]


def written_attention(
    query: Tensor | None, packed: Tensor, bias: Tensor | None, groups: Written, scale: float, rate: float
) -> Tensor:
    """As :func:`sidera.ops.attention.attention`: query (Tq, H, E), packed (Tk, P, H, E) -> (Tq, H, E)."""
    out: Tensor = _Written.apply(query, packed, bias, groups, scale, rate)
    return out


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor | None, packed: Tensor, bias: Tensor | None, groups: Written, scale: float, rate: float
    ) -> Tensor:
        like = packed if query is None else query
        out = packed.new_empty(like.shape[0], *packed.shape[2:])  # (Tq, H, E)
        saved: list[Tensor | None] = []
        for first_query, first_key, num_rows, queries, keys in groups:
            parts = _by_head(packed, first_key, num_rows, keys)  # (2 or 3, R*H, Sk, E)
            q = parts[0] if query is None else _by_head(query[:, None], first_query, num_rows, queries)[0]
            q = q if scale == 1 else q * scale  # (R*H, Sq, E)
            scores = torch.bmm(q, parts[-2].mT).float()  # (R*H, Sq, Sk)
            if bias is not None:
                scores.view(num_rows, -1, queries, keys).add_(bias[:, :queries, :keys])
            weights = scores.softmax(-1)
            kept = keep_mask(weights.shape, rate, weights.device) if rate else None
            dropped = weights if kept is None else apply_mask(weights, kept, 1 / (1 - rounded_rate(rate)))
            dropped = dropped.to(packed.dtype)
            _merge_heads([torch.bmm(dropped, parts[-1])], out[:, None], first_query, num_rows, queries)
            saved += [q, parts[-2], parts[-1], weights, kept, dropped]
        ctx.save_for_backward(*saved)
        ctx.settings = groups, scale, rate
        ctx.shapes = (None if query is None else query.shape, packed.shape, None if bias is None else bias.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (query_shape, packed_shape, bias_shape), (groups, scale, rate) = ctx.shapes, ctx.settings
        grad, saved = grads[0], ctx.saved_tensors
        grad_packed = grad.new_empty(packed_shape)
        grad_query = None if query_shape is None else grad.new_empty(query_shape)
        grad_bias = None if bias_shape is None else grad.new_zeros(bias_shape, dtype=torch.float32)
        for index, (first_query, first_key, num_rows, queries, keys) in enumerate(groups):
            q, k, v, weights, kept, dropped = saved[6 * index : 6 * index + 6]
            grad_out = _by_head(grad[:, None], first_query, num_rows, queries)[0]  # (R*H, Sq, E)
            grad_weights = torch.bmm(grad_out, v.mT).to(weights.dtype)  # (R*H, Sq, Sk)
            if kept is not None:
                grad_weights = apply_mask(grad_weights, kept, 1 / (1 - rounded_rate(rate)))
            grad_scores = softmax_backward(grad_weights, weights)
            if grad_bias is not None:
                grad_bias[:, :queries, :keys] += grad_scores.view(num_rows, -1, queries, keys).sum(0)
            grad_scores = grad_scores.to(q.dtype)
            grad_k, grad_v = torch.bmm(grad_scores.mT, q), torch.bmm(dropped.mT, grad_out)
            grad_q = torch.bmm(grad_scores, k)
            grad_q = grad_q if scale == 1 else grad_q.mul_(scale)
            if grad_query is None:
                _merge_heads([grad_q, grad_k, grad_v], grad_packed, first_key, num_rows, keys)
            else:
                _merge_heads([grad_q], grad_query[:, None], first_query, num_rows, queries)
                _merge_heads([grad_k, grad_v], grad_packed, first_key, num_rows, keys)
        return grad_query, grad_packed, grad_bias, None, None, None


def _by_head(packed: Tensor, start: int, num_rows: int, length: int) -> Tensor:
    """A matrix per row and head, for parts that stand side by side: (T, P, H, E) -> (P, R*H, S, E)."""
    rows = packed[start : start + num_rows * length].unflatten(0, (num_rows, length))
    return rows.permute(2, 0, 3, 1, 4).reshape(packed.shape[1], -1, length, packed.shape[3])


def _merge_heads(parts: Sequence[Tensor], out: Tensor, start: int, num_rows: int, length: int) -> None:
    """Write P parts (R*H, S, E) side by side into the rows of ``out`` (T, P, H, E)."""
    rows = out[start : start + num_rows * length].unflatten(0, (num_rows, length))
    for index, part in enumerate(parts):
        rows[:, :, index] = part.view(num_rows, -1, length, part.shape[-1]).transpose(1, 2)
