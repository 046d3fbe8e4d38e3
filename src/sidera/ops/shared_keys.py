"""Attention of streams to the keys of their history: targets, or beams, of one history read one table of keys.

Nothing of the table is copied per stream. Two bodies, held against one history at a time by
``tests/ops/test_shared_keys.py``. The fused one, on any device, lays a history's streams side by side, padded to the
history that has most, for torch's own kernels. The other is for training with a few queries on the CPU: torch's kernel
is made for many, and with a handful spends its time on keys and values, whose gradients are filled with zeros, gathered
and written apart even where both are one tensor. It writes the products out, saves the weights (``T * H * S`` numbers)
and takes histories in runs of equally many streams, so that none are padded.

Shape legend: B histories · G most streams of one · M streams of all · P positions of a stream · T queries of all
streams, M * P · R groups of keys and values · H query heads, h of a group · S keys of a history · E dims of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.ops.masks import added
from sidera.ops.processor import softmax_backward

Run = tuple[int, int]  # so many histories in a row, so many streams (or queries) of each


@dataclass(frozen=True)
class Streams:
    """Which history each of M streams belongs to; streams of one history are neighbours."""

    num_histories: int
    most: int  # G: streams of the history that has most
    positions: Tensor | None = None  # (M,) in a flat (B, G) table; None: M = B * G, every history has ``most``
    runs: tuple[Run, ...] = ()  # (histories, streams of each) in order, where few queries ask; else nothing

    @classmethod
    def of(cls, offsets: Tensor) -> Streams:
        """History b has streams ``offsets[b]`` to ``offsets[b + 1]``."""
        counts = offsets.diff()
        total, histories = int(offsets[-1]), counts.numel()
        most = int(counts.max()) if histories else 0
        if total == most * histories:
            return cls(histories, most)
        begins = torch.arange(histories, device=offsets.device) * most - offsets[:-1]
        positions = torch.repeat_interleave(begins, counts, output_size=total) + torch.arange(
            total, device=offsets.device
        )
        return cls(histories, most, positions)

    def sorted(self) -> tuple[Streams, Tensor | None, Tensor | None]:
        """The same with ``runs``, its histories by rising number of streams: and of each new history, (B,), and each
        new stream, (M,), where it was; None and None where nothing moves."""
        if self.positions is None:
            return replace(self, runs=((self.num_histories, self.most),)), None, None
        of = self.positions // self.most  # (M,) history of a stream
        counts = torch.bincount(of, minlength=self.num_histories)
        histories = counts.argsort(stable=True)
        rank = torch.empty_like(histories)
        rank[histories] = torch.arange(len(rank))
        each, how_many = counts.unique(return_counts=True)
        runs = tuple(zip(how_many.tolist(), each.tolist(), strict=True))
        return Streams(self.num_histories, self.most, runs=runs), histories, rank[of].argsort(stable=True)

    def spread(self, x: Tensor) -> Tensor:
        """(M, ...) -> (B, G, ...), zero where a history has no such stream."""
        shape = (self.num_histories, self.most, *x.shape[1:])
        if self.positions is None:
            return x.view(shape)
        empty = x.new_zeros(self.num_histories * self.most, *x.shape[1:])
        return empty.index_copy(0, self.positions, x).view(shape)

    def collect(self, x: Tensor) -> Tensor:
        """(B, G, ...) -> (M, ...)"""
        flat = x.flatten(0, 1)
        return flat if self.positions is None else flat.index_select(0, self.positions)


def shared_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, streams: Streams) -> Tensor:
    """softmax(q k / sqrt(E)) v of every stream over its history's keys.

    q (M, P, H, E), k and v (B, R, S, E), where head h reads group h // (H / R) (``v is k`` saves a product and a sum),
    mask (B, S) True = a key, at least one of a history -> (M, P, H, E). With ``streams.runs`` the products are written
    out.
    """
    (num_positions, num_heads, dim), groups = q.shape[1:], k.shape[1]
    if streams.runs:
        bias = None if bool(mask.all()) else added(mask, q)
        runs = [(histories, each * num_positions) for histories, each in streams.runs]
        few: Tensor = _FewQueries.apply(q.reshape(-1, groups, num_heads // groups, dim), k, v, bias, tuple(runs))
        return few.view(q.shape)
    table = streams.spread(q).unflatten(3, (groups, -1))  # (B, G, P, R, h, E)
    by_group = table.permute(0, 3, 4, 1, 2, 5)  # (B, R, h, G, P, E)
    out = F.scaled_dot_product_attention(by_group.flatten(2, 4), k, v, attn_mask=mask[:, None, None, :])
    out = out.view(by_group.shape).permute(0, 3, 4, 1, 2, 5)  # (B, G, P, R, h, E)
    return streams.collect(out.reshape(*table.shape[:2], *q.shape[1:]))


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
