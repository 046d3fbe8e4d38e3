"""Attention of a few queries to many keys that take a gradient: the training of a decoder over a long context.

torch's fused CPU kernel is made for many queries. With a handful it spends its time on keys and values: their gradients
are filled with zeros, gathered and written apart even where both are one tensor. :func:`few_queries_attention` writes
the products out, saves the weights, and takes histories in runs of equally many queries, so that none are padded.
Scores are ``T * R * h * S`` numbers, kept for the backward pass, which is why it is for few queries only.

Shape legend: B histories · T queries of all histories, one history after another · R groups of keys and values · h
query heads of a group · S keys of a history · E dims of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidera.ops.processor import softmax_backward

Run = tuple[int, int]  # so many histories in a row, so many queries of each


def few_queries_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, runs: Sequence[Run]) -> Tensor:
    """softmax(q k / sqrt(E)) v of every query over its history's keys.

    q (T, R, h, E), k and v (B, R, S, E) (``v is k`` saves a product and a sum), mask (B, S) True = a key, at
    least one per history; ``runs`` cover the histories in order -> (T, R, h, E). Single precision, on the CPU.
    """
    bias = None if bool(mask.all()) else q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    out: Tensor = _FewQueries.apply(q, k, v, bias, tuple(runs))
    return out


class _FewQueries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, runs: tuple[Run, ...]) -> Tensor:
        scaled, out = q * q.shape[-1] ** -0.5, torch.empty_like(q)
        weights = []
        for histories, queries, each in _slices(runs):
            keys, values = k[histories].flatten(0, 1), v[histories].flatten(0, 1)  # (bR, S, E)
            rows = _by_group(scaled[queries], each)
            if bias is None:
                scores = torch.bmm(rows, keys.mT)
            else:
                added = bias[histories, None].expand(-1, k.shape[1], -1).reshape(-1, 1, k.shape[2])
                scores = torch.baddbmm(added, rows, keys.mT)
            weights.append(scores.softmax(-1))  # (bR, n*h, S)
            out[queries] = _by_query(torch.bmm(weights[-1], values), k.shape[1], each)
        ctx.save_for_backward(scaled, k, v, *weights)
        ctx.runs, ctx.shared = runs, k is v
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        scaled, k, v, *weights = ctx.saved_tensors
        dq, dk = torch.empty_like(scaled), k.new_empty(k.shape)  # contiguous, whatever k is
        dv = None if ctx.shared else v.new_empty(v.shape)
        if any(each == 0 for _, each in ctx.runs):
            for part in (dk, dv):
                if part is not None:
                    part.zero_()
        for (histories, queries, each), weight in zip(_slices(ctx.runs), weights, strict=True):
            keys, values = k[histories].flatten(0, 1), v[histories].flatten(0, 1)
            rows, dout = _by_group(scaled[queries], each), _by_group(grads[0][queries], each)
            dscores = softmax_backward(torch.bmm(dout, values.mT), weight)
            dq[queries] = _by_query(torch.bmm(dscores, keys), k.shape[1], each)
            into = dk[histories].flatten(0, 1)
            if dv is None:  # both gradients go to the same tensor: one product of twice the length
                torch.bmm(torch.cat((dscores, weight), 1).mT, torch.cat((rows, dout), 1), out=into)
            else:
                torch.bmm(dscores.mT, rows, out=into)
                torch.bmm(weight.mT, dout, out=dv[histories].flatten(0, 1))
        return dq.mul_(scaled.shape[-1] ** -0.5), dk, dv, None, None


def _slices(runs: Sequence[Run]) -> list[tuple[slice, slice, int]]:
    """Histories and queries of every run that has queries, and how many queries each of its histories has."""
    found, history, query = [], 0, 0
    for count, each in runs:
        if each:
            found.append((slice(history, history + count), slice(query, query + count * each), each))
        history, query = history + count, query + count * each
    return found


def _by_group(rows: Tensor, each: int) -> Tensor:
    """(b*n, R, h, E) -> (b*R, n*h, E)"""
    _, groups, heads, dim = rows.shape
    return rows.view(-1, each, groups, heads, dim).transpose(1, 2).reshape(-1, each * heads, dim)


def _by_query(rows: Tensor, groups: int, each: int) -> Tensor:
    """(b*R, n*h, E) -> (b*n, R, h, E)"""
    dim = rows.shape[-1]
    return rows.view(-1, groups, each, rows.shape[1] // each, dim).transpose(1, 2).flatten(0, 1)
