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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidera.nn.t5_functions import add_dropped, feed_forward, linear, unit_rms
from sidera.ops.attention import Layout, attention, equal_layout, sorted_layout
from sidera.ops.dropout import dropout, rounded_rate
from sidera.ops.jagged import Jagged
from sidera.ops.masks import added, causal


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
class PackedRows:
    """Rows of tokens one after another, longest first."""

    tokens: Tensor  # (T, ...)
    layout: Layout
    order: Tensor  # (B,) the history of each packed row
    offsets: Tensor  # (B+1,)


def packed_rows(tokens: Tensor, offsets: Tensor, front: Tensor | None = None) -> PackedRows:
    """Jagged tokens (T, ...), with one more, ``front`` (B, ...), before each row's, sorted by length."""
    if offsets.numel() == 2 and front is None:  # one row, as most requests are: no number is read, nothing is sorted
        return PackedRows(tokens, equal_layout(1, tokens.shape[0]), torch.zeros_like(offsets[:1]), offsets)
    index = Jagged(torch.arange(len(tokens), device=offsets.device), offsets)
    if front is not None:
        each = torch.arange(len(offsets), device=offsets.device)
        index = Jagged(each[:-1] + len(tokens), each).join(index)
        tokens = torch.cat((tokens, front))
    order = index.lengths.argsort(descending=True, stable=True)
    index = index.rows(order)
    return PackedRows(tokens[index.values], sorted_layout(index.lengths.tolist()), order, index.offsets)


@contextmanager
def own_casts(weight: Tensor) -> Iterator[torch.dtype]:
    """Autocast off, because the layers cast by themselves; gives the number format that it asked products to have."""
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        yield dtype


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by a learnt weight; no mean is taken away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return unit_rms(x, x.dtype) * self.weight


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
        return bias + added(causal(num_places, device=bias.device), bias)


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

    def forward(self, x: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
        up = (self.up.weight * self.norm.weight).to(dtype)
        down = (self.down.weight / (1 - rounded_rate(rate))).to(dtype)
        return add_dropped(x, feed_forward(unit_rms(x, dtype), up, down, rate), rate)


class SelfAttention(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.norm = RMSNorm(size.width)
        self.qkv = _linear(size.width, 3 * size.inner, size.width**-0.5)
        # T5 draws queries narrower by sqrt(E): that replaces the 1/sqrt(E) on the scores
        nn.init.normal_(self.qkv.weight[: size.inner], std=(size.width * size.head_width) ** -0.5)
        self.out = _linear(size.inner, size.width, size.inner**-0.5)

    def forward(self, x: Tensor, layout: Layout, bias: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
        qkv = linear(unit_rms(x, dtype), (self.qkv.weight * self.norm.weight).to(dtype))  # (T, 3*H*E)
        qkv = qkv.view(len(x), 3, self.num_heads, -1)
        attended = attention(None, qkv, layout, bias=bias, scale=1.0, rate=rate).flatten(1)
        return add_dropped(x, linear(attended, self.out.weight.to(dtype)), rate)


class CrossAttention(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.norm = RMSNorm(size.width)
        self.query = _linear(size.width, size.inner, (size.width * size.head_width) ** -0.5)
        self.key_value = _linear(size.width, 2 * size.inner, size.width**-0.5)
        self.out = _linear(size.inner, size.width, size.inner**-0.5)

    def forward(self, x: Tensor, memory: Tensor, layout: Layout, rate: float) -> Tensor:
        dtype = memory.dtype
        query = linear(unit_rms(x, dtype), (self.query.weight * self.norm.weight).to(dtype))  # (Tq, H*E)
        key_value = linear(memory, self.key_value.weight.to(dtype))  # (Tk, 2*H*E)
        query, key_value = query.view(len(x), self.num_heads, -1), key_value.view(len(memory), 2, self.num_heads, -1)
        attended = attention(query, key_value, layout, scale=1.0, rate=rate).flatten(1)
        return add_dropped(x, linear(attended, self.out.weight.to(dtype)), rate)


class EncoderLayer(nn.Module):
    def __init__(self, size: T5Size) -> None:
        super().__init__()
        self.attention, self.feed_forward = SelfAttention(size), FeedForward(size)

    def forward(self, x: Tensor, layout: Layout, bias: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
        return self.feed_forward(self.attention(x, layout, bias, rate, dtype), rate, dtype)


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

    def forward(self, x: Tensor, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
        """(T, D) embeddings of packed rows, sorted by length -> (T, D) float32. ``dtype``: of the products."""
        rate = self.rate if self.training else 0.0
        bias = self.bias(max(rows.length for rows in layout.keys))
        x = dropout(x, rate)
        for layer in self.layers:
            x = layer(x, layout, bias, rate, dtype)
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
        self,
        x: Tensor,
        memory: Tensor,
        length: int,
        memory_layout: Layout,
        num_candidates: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B*G*L, D) embeddings -> (B*G*L, D): ``num_candidates`` G rows of ``length`` L tokens for each row of memory.

        Rows stand in the memory's order; the candidates of a row do not see each other.
        """
        rate = self.rate if self.training else 0.0
        bias, own = self.bias(length), equal_layout(len(x) // length, length)
        reading = memory_layout.asked_by(num_candidates * length)
        x, memory = dropout(x, rate), memory.to(dtype)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.attention(x, own, bias, rate, dtype)
            x = layer.cross(x, memory, reading, rate)
            x = layer.feed_forward(x, rate, dtype)
        return dropout(self.norm(x), rate)
