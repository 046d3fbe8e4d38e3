"""HSTU's attention: silu(q k + bias) v over what came before, without a softmax (arXiv 2402.17152).

    pairs = Pairs.of(layout, times, asked)                             # once per batch, shared by every layer
    out = silu_attention(qkv, pairs, position_bias, time_bias, divisor)

The bias of a pair (i reads j) is ``position_bias[i - j]`` plus ``time_bias[bucket]``, where the bucket is of the
seconds between event j and the moment at which position i is asked: :func:`time_buckets`. The mask comes after the
silu, since silu(-inf) is not a number. The weights are divided by a constant, the longest history that the model
reads, as in the published code: they need not sum to one, so a long history weighs more than a short one.

Only pairs that are read are computed. On the CPU all rows form one table, sorted by length, and its queries are cut
into strips: a strip takes the rows that are long enough to have a query in it, and reads the keys before its own end.
So neither padding nor the later half of the square is touched. On a device every table of the layout is one strip, for
there launches are dear and squares are cheap. The gradient is written out: one fused pass gives that of silu from the
scores that the forward pass keeps, and the tables of biases gather theirs by counting.

Shape legend: T tokens of all rows · b rows of a table or strip · s longest row · H heads · E dims of a head ·
q queries of a strip · k keys that they read · P positions · Z buckets of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.ops.attention import MAX_GROUPS, Layout, Rows, layout_of

TIME_BUCKETS = 129  # 0.301 in the logarithm of seconds each, as published; the last ones are never reached
LOG_STEP = 0.301
STRIP = 48  # queries that share their keys on the CPU


def time_buckets(seconds: Tensor) -> Tensor:
    """floor(log(max(1, abs(seconds))) / 0.301) as uint8. Equal times are bucket 0; backward ones count by size."""
    return (seconds.abs().clamp(min=1).float().log() / LOG_STEP).clamp(max=TIME_BUCKETS - 1).byte()


@dataclass(frozen=True)
class Strip:
    """Queries ``start`` to ``end - 1`` of the rows from ``first`` on read the keys before ``end``."""

    first: int  # rows before it are too short to have a query here
    start: int
    end: int
    buckets: Tensor  # (b, q, k) uint8

    def cut(self, num_heads: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the queries and the keys stand in tables (rows * H, s, E)."""
        rows = slice(self.first * num_heads, None)
        return (rows, slice(self.start, self.end)), (rows, slice(self.end))


@dataclass(frozen=True)
class Pairs:
    """Which pairs there are and how far apart in time, for all layers."""

    layout: Layout
    strips: tuple[tuple[Strip, ...], ...]  # of each table of the layout

    @classmethod
    def of(cls, offsets: Tensor, times: Tensor, asked: Tensor) -> Pairs:
        """Rows between ``offsets`` (B+1,). ``times`` (T,): seconds of each event; ``asked`` (T,): of the moment at
        which what follows it is asked for."""
        layout = layout_of(offsets, 1 if offsets.is_cpu else MAX_GROUPS)
        strips = []
        for rows in layout.keys:
            when, then = rows.take(times), rows.take(asked)  # (b, s)
            of_table, width = [], STRIP if offsets.is_cpu else rows.length
            for start in range(0, rows.length, width):
                end = min(start + width, rows.length)
                first = 0 if rows.lengths is None or not start else int((rows.lengths <= start).sum())
                seconds = then[first:, start:end, None] - when[first:, None, :end]  # (b, q, k)
                of_table.append(Strip(first, start, end, time_buckets(seconds)))
            strips.append(tuple(of_table))
        return cls(layout, tuple(strips))


def looped_silu_attention(
    qkv: Tensor, offsets: Tensor, times: Tensor, asked: Tensor, position_bias: Tensor, time_bias: Tensor, divisor: float
) -> Tensor:
    """The reference: the whole square of one row after another, and then the mask."""
    out = torch.zeros_like(qkv[:, 0])
    for row in range(offsets.numel() - 1):
        tokens = slice(int(offsets[row]), int(offsets[row + 1]))
        q, k, v = qkv[tokens].unbind(1)  # (n, H, E)
        steps = torch.arange(len(q))
        apart = (steps[:, None] - steps).clamp(min=0)  # (n, n)
        buckets = time_buckets(asked[tokens, None] - times[None, tokens])
        scores = torch.einsum("qhe,khe->hqk", q, k) + position_bias[apart] + time_bias[buckets.long()]
        weights = F.silu(scores) / divisor * (steps[:, None] >= steps)
        out[tokens] = torch.einsum("hqk,khe->qhe", weights, v)
    return out


def silu_attention(qkv: Tensor, pairs: Pairs, position_bias: Tensor, time_bias: Tensor, divisor: float) -> Tensor:
    """(T, 3, H, E) queries, keys, values -> (T, H, E). position_bias (P,), P >= the longest row; time_bias (Z,)."""
    with torch.autocast(qkv.device.type, enabled=False):  # the queries' own precision is that of every product
        answers: Tensor = _SiluAttention.apply(qkv, pairs, position_bias, time_bias, 1.0 / divisor)
    return answers


def last_silu_attention(
    query: Tensor, key_value: Tensor, offsets: Tensor, seconds: Tensor, position_bias: Tensor, time_bias: Tensor,
    divisor: float,
) -> Tensor:  # fmt: skip
    """What :func:`silu_attention` gives the last token of every row: query (B, H, E), key_value (T, 2, H, E) and
    ``seconds`` (T,), between each event and the moment at which its row is asked -> (B, H, E)."""
    rows = torch.arange(len(query), device=query.device).repeat_interleave(offsets.diff(), output_size=len(seconds))
    apart = offsets[1:][rows] - 1 - torch.arange(len(seconds), device=query.device)  # (T,)
    keys, values = key_value.unbind(1)  # (T, H, E)
    bias = position_bias[apart] + time_bias[time_buckets(seconds).int()]
    weights = F.silu((keys * query[rows]).sum(-1) + bias[:, None]) / divisor  # (T, H)
    return weights.new_zeros(query.shape).index_add(0, rows, weights[..., None] * values)


def _tokens(rows: Rows) -> Tensor | None:
    """(t,) token at each place of a gathered table that holds one."""
    if rows.index is None:
        return None
    flat = rows.index.flatten()
    return flat if rows.keep is None else flat[rows.keep]


def _bias(strip: Strip, position_bias: Tensor, time_bias: Tensor) -> Tensor:
    """(b, q, k)"""
    by_time = time_bias.index_select(0, strip.buckets.flatten().int()).view(strip.buckets.shape)
    return by_time.add_(position_bias[_distances(strip, position_bias.device)])


def _distances(strip: Strip, device: torch.device) -> Tensor:
    """(q, k) positions between query and key, 0 for keys that come later."""
    steps = torch.arange(strip.end, device=device)
    return (steps[strip.start :, None] - steps).clamp(min=0)


def _heads(rows: Rows, values: Tensor) -> Tensor:
    """(T, n, H, E) -> (n, b * H, s, E)"""
    if rows.index is None:
        table = rows.take(values)
    else:  # several times as fast as indexing by a table
        flat = values.flatten(1).index_select(0, rows.index.flatten())
        table = flat.view(*rows.index.shape, *values.shape[1:])
    return table.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


class _SiluAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, pairs: Pairs, position_bias: Tensor, time_bias: Tensor, scale: float) -> Tensor:
        num_heads, out = qkv.shape[2], torch.empty_like(qkv[:, 0])
        biases = position_bias.to(qkv.dtype), time_bias.to(qkv.dtype)
        kept = []
        for rows, strips in zip(pairs.layout.keys, pairs.strips, strict=True):
            q, k, v = _heads(rows, qkv)
            read = torch.empty_like(v)
            for strip in strips:
                bias = _bias(strip, *biases)[:, None].expand(-1, num_heads, -1, -1).flatten(0, 1)
                asked, known = strip.cut(num_heads)
                scores = torch.baddbmm(bias, q[asked], k[known].transpose(1, 2))  # (b * H, q, k)
                weights = F.silu(scores)
                weights[..., asked[1]].tril_()
                torch.bmm(weights, v[known], out=read[asked])
                kept.append(scores)
            table = read.mul_(scale).unflatten(0, (-1, num_heads)).transpose(1, 2)  # (b, s, H, E)
            _write(out, rows, table)
        ctx.save_for_backward(qkv, position_bias, time_bias, *kept)
        ctx.pairs, ctx.scale = pairs, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        qkv, position_bias, time_bias, *kept = ctx.saved_tensors
        num_heads, grad_qkv = qkv.shape[2], torch.empty_like(qkv)
        by_position = torch.zeros_like(position_bias, dtype=torch.float32)
        by_time = torch.zeros_like(time_bias, dtype=torch.float32)
        scores_left = iter(kept)
        for rows, strips in zip(ctx.pairs.layout.keys, ctx.pairs.strips, strict=True):
            q, k, v = _heads(rows, qkv)
            (d_read,) = _heads(rows, grads[0][:, None])
            if (mask := rows.mask()) is not None:  # pads repeat a token, whose gradient counts once
                d_read = d_read.unflatten(0, (-1, num_heads)).mul_(mask[:, None, :, None]).flatten(0, 1)
            d_read = d_read.mul_(ctx.scale)
            d_q, d_k, d_v = d_qkv = qkv.new_zeros(3, *q.shape)
            for strip in strips:
                scores = next(scores_left)
                asked, known = strip.cut(num_heads)
                d_weights = torch.bmm(d_read[asked], v[known].transpose(1, 2))
                d_weights[..., asked[1]].tril_()
                weights = F.silu(scores)
                weights[..., asked[1]].tril_()
                d_v[known] += torch.bmm(weights.transpose(1, 2), d_read[asked])
                d_scores = torch.ops.aten.silu_backward(d_weights, scores)
                torch.bmm(d_scores, k[known], out=d_q[asked])
                d_k[known] += torch.bmm(d_scores.transpose(1, 2), q[asked])
                d_bias = d_scores.unflatten(0, (-1, num_heads)).sum(1).float() if num_heads > 1 else d_scores.float()
                by_time += _by_bucket(strip.buckets, d_bias, len(time_bias))
                by_position.index_add_(0, _distances(strip, d_bias.device).flatten(), d_bias.sum(0).flatten())
            _write(grad_qkv, rows, d_qkv.unflatten(1, (-1, num_heads)).permute(1, 3, 0, 2, 4))
        return grad_qkv, None, by_position.to(position_bias.dtype), by_time.to(time_bias.dtype), None


def _write(out: Tensor, rows: Rows, table: Tensor) -> None:
    """The real tokens of a table (b, s, ...) to where they belong."""
    tokens = _tokens(rows)
    if tokens is None:
        out[rows.start : rows.end] = table.flatten(0, 1)
    else:
        out.index_copy_(0, tokens, rows.put(table))


def _by_bucket(buckets: Tensor, values: Tensor, num_buckets: int) -> Tensor:
    """(Z,) sums of ``values`` by bucket."""
    if buckets.is_cpu:
        sums = torch.bincount(buckets.flatten(), values.flatten(), num_buckets)
        return sums.float()
    # a row of sums for each history: fewer writes meet, and nothing waits for the host
    sums = values.new_zeros(len(buckets), num_buckets)
    return sums.scatter_add_(1, buckets.flatten(1).long(), values.flatten(1)).sum(0)
