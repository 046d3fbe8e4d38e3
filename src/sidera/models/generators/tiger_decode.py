"""TIGER for beam search: few, fused operations per step, and nothing copied per beam of a history.

* Cross-attention is folded. With K = e Wk and V = e Wv of a history's encoder states e, scores = x Wq K^T and output =
  p V Wo are *two plain matrix products* with matrices that depend on the history alone (keys: (H*S, D), values:
  (D, H*S)). They are made once per search, and all beams of a history multiply the same ones.
* Self-attention keeps its keys and values where the step wrote them (:mod:`sidera.nn.beam_cache`).
* Norm weights and their sqrt(D) are folded into the matrices that follow; the head multiplies one level's rows (or all,
  to normalise over the vocabulary).

The laid-out weights follow the model's parameters: they are rebuilt when a parameter was changed in place or replaced.

Shape legend: B histories · W beams · L levels · S encoder tokens · H heads · E dims of a head · D width · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.nn.beam_cache import BeamCache
from sidera.nn.product import packed, product
from sidera.nn.t5 import Decoder, DecoderLayer, Encoder, EncoderLayer
from sidera.nn.t5_functions import EPSILON
from sidera.ops.attention import Layout, attention
from sidera.ops.jagged import with_copies
from sidera.ops.masks import added
from sidera.roles import StepOutput

BEGIN = 1
ROWS = 64  # of x in a product, about: encoder tokens or beams


@dataclass(frozen=True)
class TigerContext:
    """The encoder's states of every history, packed longest first."""

    states: Tensor  # (T, D)
    layout: Layout  # of the rows
    order: Tensor  # (B,) history of each packed row
    weights: FastWeights | None = None  # what the states were computed with; None: with the parameters themselves

    @property
    def num_histories(self) -> int:
        return self.order.numel()

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.order.nbytes

    def padded(self) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) states in the order of the batch, and a mask (B, S), True = token; None when all are tokens."""
        groups = self.layout.keys
        if len(groups) == 1:
            states = self.states.view(self.num_histories, groups[0].length, -1)
            return torch.empty_like(states).index_copy_(0, self.order, states), None
        lengths = torch.tensor([group.length for group in groups], device=self.order.device)
        counts = torch.tensor([group.num_rows for group in groups], device=self.order.device)
        lengths = torch.empty_like(self.order).index_copy_(0, self.order, lengths.repeat_interleave(counts))  # (B,)
        places = torch.arange(groups[0].length, device=lengths.device)
        mask = places < lengths[:, None]  # (B, S)
        states = self.states.new_zeros(*mask.shape, self.states.shape[1])
        for group, rows in zip(groups, self.order.split([group.num_rows for group in groups]), strict=True):
            states[rows, : group.length] = self.states[group.start : group.end].view(group.num_rows, group.length, -1)
        return states, mask

    @property
    def length(self) -> int:
        return self.layout.keys[0].length

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.states,)

    def padded_to(self, num_histories: int, length: int) -> PaddedContext:
        """See :class:`sidera.decode.graph.Paddable`."""
        return self.in_a_table().padded_to(num_histories, length)

    def rows(self, rows: Tensor) -> PaddedContext:
        """The histories ``rows`` (n,) alone."""
        return self.in_a_table().rows(rows)

    def portable(self) -> PaddedContext:
        """See :func:`sidera.decode.compiled.portable`; a program has the weights inside."""
        return replace(self.in_a_table(), weights=None)

    def in_a_table(self) -> PaddedContext:
        states, mask = self.padded()
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return PaddedContext(states, mask, self.weights)


@dataclass(frozen=True)
class PaddedContext:
    """The same in one table."""

    states: Tensor  # (B, S, D)
    mask: Tensor  # (B, S) True = token
    weights: FastWeights | None = None

    @property
    def num_histories(self) -> int:
        return self.mask.shape[0]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.mask.nbytes

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def padded(self) -> tuple[Tensor, Tensor | None]:
        return self.states, self.mask

    def portable(self) -> PaddedContext:
        return replace(self, weights=None)

    def rows(self, rows: Tensor) -> PaddedContext:
        """The histories ``rows`` (n,) alone."""
        return PaddedContext(self.states[rows], self.mask[rows], self.weights)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.states, self.mask

    def padded_to(self, num_histories: int, length: int) -> PaddedContext:
        more, longer = num_histories - self.num_histories, length - self.length
        states = with_copies(F.pad(self.states, (0, 0, 0, longer)), more)
        return PaddedContext(states, with_copies(F.pad(self.mask, (0, longer)), more), self.weights)


@dataclass(frozen=True)
class CodeTokens:
    """Where the codes of each level stand in the vocabulary."""

    starts: tuple[int, ...]  # first token of each level
    sizes: tuple[int, ...]
    over_vocabulary: bool  # scores are normalised over all tokens, not over the level's


@dataclass(frozen=True)
class _Layer:
    """The weights of an encoder's or decoder's layer, as they are multiplied; cross-attention is folded elsewhere."""

    qkv: Tensor  # (3*H*E, D)
    out: Tensor  # (D, H*E)
    up: Tensor  # (F, D)
    down: Tensor  # (D, F)


@dataclass(frozen=True)
class FastWeights:
    """A Tiger laid out for answering; norm weights are folded into the matrices behind them."""

    encoder: tuple[_Layer, ...]
    encoder_bias: Tensor  # (H, S, S) float32, S the most tokens of a history
    encoder_norm: Tensor  # (D,)
    layers: tuple[_Layer, ...]  # of the decoder
    fold_keys: Tensor  # (layers*H*D, D): encoder state -> what a decoder state is multiplied with, per layer and head
    fold_values: Tensor  # (layers*D*H, D): encoder state -> what an attention weight adds to the decoder state
    embedding: Tensor  # (V, D) float32
    head: Tensor  # (V, D)
    bias: Tensor  # (L, L, H) float32: of a query at a level (row), for every earlier level
    floor: Tensor  # () sqrt(D * epsilon), see _normed
    num_heads: int
    tokens: CodeTokens


@torch.no_grad()
def layout_weights(
    encoder: Encoder, decoder: Decoder, embedding: Tensor, tokens: CodeTokens, max_tokens: int, dtype: torch.dtype
) -> FastWeights:
    """Fold and cast a Tiger's parameters; products will run in ``dtype``. max_tokens: of a history, at most."""
    width, num_heads = embedding.shape[1], cast(EncoderLayer, encoder.layers[0]).attention.num_heads
    num_levels, scale = len(tokens.sizes), width**0.5
    fold_keys, fold_values = [], []
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        cross, by_head = layer.cross, (num_heads, -1, width)
        query = (cross.query.weight * (cross.norm.weight * scale)).view(by_head)  # (H, E, D)
        key, value = (weight.view(by_head) for weight in cross.key_value.weight.chunk(2))
        out = cross.out.weight.view(width, num_heads, -1).permute(1, 2, 0)  # (H, E, D)
        fold_keys.append(query.transpose(1, 2) @ key)  # (H, D, D): state of the decoder x state of the encoder
        fold_values.append((out.transpose(1, 2) @ value).transpose(0, 1))  # (D, H, D)
    return FastWeights(
        encoder=tuple(_layer(layer, dtype) for layer in encoder.layers),
        encoder_bias=encoder.bias(max_tokens),
        encoder_norm=encoder.norm.weight * scale,
        layers=tuple(_layer(layer, dtype) for layer in decoder.layers),
        fold_keys=torch.stack(fold_keys).flatten(0, 2).to(dtype),
        fold_values=torch.stack(fold_values).flatten(0, 2).to(dtype),
        embedding=embedding,
        head=(embedding * decoder.norm.weight).to(dtype),  # T5's D^-0.5 and the norm's D^0.5 cancel
        bias=decoder.bias(num_levels).permute(1, 2, 0).contiguous(),
        floor=torch.tensor((width * EPSILON) ** 0.5, device=embedding.device),
        num_heads=num_heads,
        tokens=tokens,
    )


def _layer(layer: nn.Module, dtype: torch.dtype) -> _Layer:
    assert isinstance(layer, EncoderLayer | DecoderLayer)
    attention, forward = layer.attention, layer.feed_forward
    scale = attention.norm.weight.numel() ** 0.5
    qkv = attention.qkv.weight * (attention.norm.weight * scale)
    up = forward.up.weight * (forward.norm.weight * scale)
    laid_out = (packed(weight.to(dtype), ROWS) for weight in (qkv, attention.out.weight, up, forward.down.weight))
    return _Layer(*laid_out)


@torch.no_grad()
def encode(weights: FastWeights, x: Tensor, layout: Layout) -> Tensor:
    """(T, D) inputs of packed tokens -> (T, D) states: what ``Tiger.encoder`` computes."""
    for layer in weights.encoder:
        qkv = product(_normed(x, weights.floor, layer.qkv.dtype), layer.qkv)  # (T, 3*H*E)
        qkv = qkv.view(x.shape[0], 3, weights.num_heads, -1)
        attended = attention(None, qkv, layout, bias=weights.encoder_bias, scale=1.0)
        x = x + product(attended.flatten(1), layer.out)
        x = x + _fed_forward(x, layer, weights)
    return _normed(x, weights.floor, x.dtype) * weights.encoder_norm


@dataclass(frozen=True)
class TigerCache:
    """Buffers of one beam search."""

    weights: FastWeights
    keys: Tensor  # (layers, B, H*S, D)
    values: Tensor  # (layers, B, D, H*S)
    absent: Tensor | None  # (B, 1, 1, S) -inf where a history has no token
    beams: BeamCache

    @property
    def num_histories(self) -> int:
        return self.beams.num_histories


@torch.no_grad()
def new_cache(weights: FastWeights, context: TigerContext | PaddedContext, width: int) -> TigerCache:
    """Cross-attention of all layers for every history, and room for ``width`` beams."""
    states, mask = context.padded()
    num_histories, num_tokens, dim = states.shape
    num_layers, num_heads = len(weights.layers), weights.num_heads
    states = states.to(weights.head.dtype)
    if num_histories == 1:  # one product for all layers
        keys = product(states[0], weights.fold_keys).view(1, num_tokens, num_layers, num_heads, dim)
        values = product(weights.fold_values, states[0])  # (layers*D*H, S)
    else:
        keys = F.linear(states, weights.fold_keys).view(num_histories, num_tokens, num_layers, num_heads, dim)
        values = weights.fold_values @ states.transpose(1, 2)  # (B, layers*D*H, S)
    keys = keys.permute(2, 0, 3, 1, 4).reshape(num_layers, num_histories, -1, dim)  # (layers, B, H*S, D)
    values = values.view(num_histories, num_layers, dim, -1).transpose(0, 1)  # (layers, B, D, H*S)
    absent = None if mask is None else added(mask, weights.embedding)[:, None, None]
    num_levels, inner = len(weights.tokens.sizes), weights.layers[0].out.shape[1]
    beams = BeamCache(num_histories, width, num_levels, num_layers, inner, like=weights.embedding)
    return TigerCache(weights, keys, values, absent, beams)


@torch.no_grad()
def step(cache: TigerCache, level: int, codes: Tensor | None, parents: Tensor | None) -> StepOutput:
    """Scores of the codes at ``level``: see ``core.Generator.step``."""
    weights = cache.weights
    if codes is None:
        x = weights.embedding[BEGIN].repeat(cache.num_histories, 1)  # (B, D)
    else:
        tokens = (codes + weights.tokens.starts[level - 1]).view(-1)
        x = weights.embedding.index_select(0, tokens)  # (B*W, D)
    cache.beams.begin_position(parents)
    for index, layer in enumerate(weights.layers):
        x = _self_attention(x, layer, weights, cache.beams, index)
        x = _cross_attention(x, layer, weights.num_heads, cache, index)
        x = x + _fed_forward(x, layer, weights)
    shape = (cache.num_histories, x.shape[0] // cache.num_histories)
    return _scores(_normed(x, weights.floor, weights.head.dtype), weights, level, shape)


def _normed(x: Tensor, floor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of unit length; the weights behind carry the sqrt(D) that makes it unit root mean square.

    ``floor`` is sqrt(D * epsilon): hypot adds it under the root as RMS norm does, in three operations for seven.
    """
    return (x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)).to(dtype)


def _fed_forward(x: Tensor, layer: _Layer, weights: FastWeights) -> Tensor:
    return product(product(_normed(x, weights.floor, layer.up.dtype), layer.up, relu=True), layer.down)


def _self_attention(x: Tensor, layer: _Layer, weights: FastWeights, beams: BeamCache, index: int) -> Tensor:
    """x (B*W, D) of the newest position against all positions so far."""
    qkv = product(_normed(x, weights.floor, layer.qkv.dtype), layer.qkv)  # (B*W, 3*H*E)
    query, key_value = qkv.tensor_split((layer.out.shape[1],), dim=1)
    position = beams.ancestors.shape[1] - 1
    bias = weights.bias[position, : position + 1]  # (position + 1, H)
    return x + product(beams.attend(index, query, key_value, weights.num_heads, bias), layer.out)


def _cross_attention(x: Tensor, layer: _Layer, num_heads: int, cache: TigerCache, index: int) -> Tensor:
    """x (B*W, D) against its history's folded keys and values."""
    keys, values = cache.keys[index], cache.values[index]
    query = _normed(x, cache.weights.floor, keys.dtype)
    if cache.num_histories == 1 and cache.absent is None:
        scores = product(query, keys[0])  # (W, H*S)
        shares = scores.view(-1, num_heads, scores.shape[1] // num_heads).softmax(-1)
        return x + product(shares.view(scores.shape), values[0])
    scores = query.view(cache.num_histories, -1, x.shape[1]) @ keys.transpose(1, 2)  # (B, W, H*S)
    by_head = scores.view(*scores.shape[:2], num_heads, -1)
    if cache.absent is not None:
        by_head = by_head + cache.absent.to(by_head.dtype)
    shares = by_head.softmax(-1).view(scores.shape)
    return x + (shares @ values.transpose(1, 2)).view(x.shape)


def _scores(states: Tensor, weights: FastWeights, level: int, shape: tuple[int, int]) -> StepOutput:
    start, size = weights.tokens.starts[level], weights.tokens.sizes[level]
    if not weights.tokens.over_vocabulary:
        return StepOutput(product(states, weights.head[start : start + size]).view(*shape, -1))
    logits = product(states, weights.head).view(*shape, -1)  # (B, W, V)
    return StepOutput(logits[..., start : start + size], logits.float().logsumexp(-1))
