"""T5's blocks (arXiv 1910.10683) on packed tokens: no padding enters a linear layer, a norm or the feed-forward.

Rows are sorted by length by the caller, so that rows of equal length stand next to each other: attention then runs on
*views* of the packed tensors, one batched product per group, without gathers or masks. Batches that are bucketed by
length hold one to three groups.

What T5 does unlike most: RMS norm before each sublayer, no bias anywhere, no 1/sqrt(d) on attention scores (the
initialisation carries it), one table of relative-position biases for all layers of a stack, dropout on the attention
weights, inside the feed-forward, after every sublayer and after the last norm.

Shape legend: T tokens of all rows · S tokens of a row (q: queries, k: keys) · R rows of a group · H heads · E dims of a
head · D width · F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.nn.dropout import dropout

EPSILON = 1e-6


@dataclass(frozen=True)
class T5Size:
    """Measures of an encoder-decoder; the defaults are TIGER's."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 6
    head_width: int = 64
    ff_width: int = 1024
    dropout: float = 0.1
    num_buckets: int = 32
    max_distance: int = 128

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_width


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


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by a learnt weight; no mean is taken away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)


class RelativeBias(nn.Module):
    """A learnt number per head for each bucket of (key place - query place); far distances share buckets."""

    def __init__(self, size: T5Size, bidirectional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(size.num_buckets, size.num_heads)
        nn.init.normal_(self.table.weight, std=size.width**-0.5)
        self.bidirectional, self.num_buckets, self.max_distance = bidirectional, size.num_buckets, size.max_distance

    def buckets(self, num_places: int) -> Tensor:
        """(S, S) bucket of each query (row) and key (column)."""
        places = torch.arange(num_places, device=self.table.weight.device)
        distance = places[:, None] - places[None]  # how far the key lies behind the query
        num_buckets, offset = self.num_buckets, torch.zeros_like(distance)
        if self.bidirectional:
            num_buckets //= 2
            offset = (distance < 0) * num_buckets
            distance = distance.abs()
        distance = distance.clamp(min=0)
        exact = num_buckets // 2  # near distances have a bucket each, farther ones share logarithmically
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + ratio * (num_buckets - exact)).long().clamp(max=num_buckets - 1)
        return offset + torch.where(distance < exact, distance, far)

    def forward(self, num_places: int) -> Tensor:
        """(H, S, S) added to the scores; a causal stack gets -inf above the diagonal."""
        bias = self.table(self.buckets(num_places)).permute(2, 0, 1)  # (H, S, S)
        if self.bidirectional:
            return bias
        future = torch.ones(num_places, num_places, dtype=torch.bool, device=bias.device).triu(1)
        return bias.masked_fill(future, float("-inf"))


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_groups: Sequence[Group],
    key_groups: Sequence[Group],
    num_heads: int,
    bias: Tensor | None,
    rate: float,
) -> Tensor:
    """Attention inside each row. q (Tq, H*E), k and v (Tk, H*E) -> (Tq, H*E).

    Group i of the queries attends group i of the keys. ``bias`` (H, S, S) is cut to each group's length.
    """
    outputs = []
    for query, key in zip(query_groups, key_groups, strict=True):
        rows, num_queries, num_keys = query.num_rows, query.length, key.length
        q_g = q[query.start : query.end].view(rows, num_queries, num_heads, -1).transpose(1, 2)  # (R, H, Sq, E)
        k_g = k[key.start : key.end].view(rows, num_keys, num_heads, -1).permute(0, 2, 3, 1)  # (R, H, E, Sk)
        v_g = v[key.start : key.end].view(rows, num_keys, num_heads, -1).transpose(1, 2)  # (R, H, Sk, E)
        scores = q_g @ k_g  # (R, H, Sq, Sk)
        if bias is not None:
            scores = scores + bias[:, :num_queries, :num_keys]
        weights = dropout(scores.float().softmax(-1), rate).to(v_g.dtype)
        outputs.append((weights @ v_g).transpose(1, 2).reshape(rows * num_queries, -1))  # (R*Sq, H*E)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


class FeedForward(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.norm = RMSNorm(size.width)
        self.up = _linear(size.width, size.ff_width, size.width**-0.5)
        self.down = _linear(size.ff_width, size.width, size.ff_width**-0.5)

    def forward(self, x: Tensor, rate: float) -> Tensor:
        hidden = dropout(F.relu(self.up(self.norm(x))), rate)  # (T, F)
        return x + dropout(self.down(hidden), rate)


class SelfAttention(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.norm = RMSNorm(size.width)
        self.qkv = _linear(size.width, 3 * size.inner, size.width**-0.5)
        # T5 draws queries narrower by sqrt(E): that replaces the 1/sqrt(E) on the scores
        nn.init.normal_(self.qkv.weight[: size.inner], std=(size.width * size.head_width) ** -0.5)
        self.out = _linear(size.inner, size.width, size.inner**-0.5)

    def forward(self, x: Tensor, groups: Sequence[Group], bias: Tensor, rate: float) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)  # each (T, H*E)
        attended = packed_attention(q, k, v, groups, groups, self.num_heads, bias, rate)
        return x + dropout(self.out(attended), rate)


class CrossAttention(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.norm = RMSNorm(size.width)
        self.query = _linear(size.width, size.inner, (size.width * size.head_width) ** -0.5)
        self.key_value = _linear(size.width, 2 * size.inner, size.width**-0.5)
        self.out = _linear(size.inner, size.width, size.inner**-0.5)

    def forward(
        self, x: Tensor, memory: Tensor, groups: Sequence[Group], memory_groups: Sequence[Group], rate: float
    ) -> Tensor:
        k, v = self.key_value(memory).chunk(2, dim=-1)  # each (Tk, H*E)
        q = self.query(self.norm(x))
        attended = packed_attention(q, k, v, groups, memory_groups, self.num_heads, None, rate)
        return x + dropout(self.out(attended), rate)


class EncoderLayer(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.attention, self.feed_forward = SelfAttention(size), FeedForward(size)

    def forward(self, x: Tensor, groups: Sequence[Group], bias: Tensor, rate: float) -> Tensor:
        return self.feed_forward(self.attention(x, groups, bias, rate), rate)


class DecoderLayer(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = SelfAttention(size), CrossAttention(size), FeedForward(size)


class Encoder(nn.Module):
    """Reads whole rows in both directions."""

    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.rate = size.dropout
        self.bias = RelativeBias(size, bidirectional=True)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.num_layers))
        self.norm = RMSNorm(size.width)

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """(T, D) embeddings of packed rows, sorted by length -> (T, D)."""
        rate = self.rate if self.training else 0.0
        bias = self.bias(max(group.length for group in groups))
        x = dropout(x, rate)
        for layer in self.layers:
            x = layer(x, groups, bias, rate)
        return dropout(self.norm(x), rate)


class Decoder(nn.Module):
    """Writes rows of one length, each reading its own row of the encoder."""

    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.rate = size.dropout
        self.bias = RelativeBias(size, bidirectional=False)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.num_layers))
        self.norm = RMSNorm(size.width)

    def forward(
        self, x: Tensor, memory: Tensor, length: int, memory_groups: Sequence[Group], num_candidates: int = 1
    ) -> Tensor:
        """(B*G*L, D) embeddings -> (B*G*L, D): ``num_candidates`` G rows of ``length`` L tokens for each row of memory.

        Rows stand in the memory's order; the candidates of a row do not see each other.
        """
        rate = self.rate if self.training else 0.0
        groups, start = [], 0
        for memory_group in memory_groups:
            groups.append(Group(start, memory_group.num_rows, num_candidates * length))
            start = groups[-1].end
        bias, rows = self.bias(length), (Group(0, start // length, length),)
        x = dropout(x, rate)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.attention(x, rows, bias, rate)
            x = layer.cross(x, memory, groups, memory_groups, rate)
            x = layer.feed_forward(x, rate)
        return dropout(self.norm(x), rate)
