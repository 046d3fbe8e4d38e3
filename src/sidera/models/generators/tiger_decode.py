"""TIGER for beam search: few, fused operations per step, and nothing copied per beam of a history.

* Cross-attention is folded. With K = e Wk and V = e Wv of a history's encoder states e, scores = x Wq K^T and output =
  p V Wo are *two plain matrix products* with matrices that depend on the history alone (keys: (H*S, D), values:
  (D, H*S)). They are made once per search, and all beams of a history multiply the same ones.
* Self-attention keeps its keys and values where the step wrote them; each beam holds, for every earlier level, the row
  of its ancestor. One gather per layer fetches them.
* Norm weights and their sqrt(D) are folded into the matrices that follow; the head multiplies one level's rows (or all,
  to normalise over the vocabulary).

The laid-out weights follow the model's parameters: they are rebuilt when a parameter was changed in place or replaced.

Shape legend: B histories · W beams · L levels · S encoder tokens · H heads · E dims of a head · D width · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.nn.product import packed, product
from sidera.nn.t5 import DecoderLayer, EncoderLayer
from sidera.nn.t5_functions import EPSILON, Group, packed_attention
from sidera.roles import StepOutput

if TYPE_CHECKING:
    from sidera.models.generators.tiger import Tiger

BEGIN = 1
PIECE = 256  # beams whose self-attention is computed at once
ROWS = 64  # of x in a product, about: encoder tokens or beams


@dataclass(frozen=True)
class TigerContext:
    """The encoder's states of every history, packed longest first."""

    states: Tensor  # (T, D)
    groups: tuple[Group, ...]  # rows of equal length
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
        if len(self.groups) == 1:
            states = self.states.view(self.num_histories, self.groups[0].length, -1)
            return torch.empty_like(states).index_copy_(0, self.order, states), None
        lengths = torch.tensor([group.length for group in self.groups], device=self.order.device)
        counts = torch.tensor([group.num_rows for group in self.groups], device=self.order.device)
        lengths = torch.empty_like(self.order).index_copy_(0, self.order, lengths.repeat_interleave(counts))  # (B,)
        places = torch.arange(self.groups[0].length, device=lengths.device)
        mask = places < lengths[:, None]  # (B, S)
        states = self.states.new_zeros(*mask.shape, self.states.shape[1])
        for group, rows in zip(self.groups, self.order.split([group.num_rows for group in self.groups]), strict=True):
            states[rows, : group.length] = self.states[group.start : group.end].view(group.num_rows, group.length, -1)
        return states, mask


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
    level_starts: tuple[int, ...]
    level_sizes: tuple[int, ...]
    over_vocabulary: bool  # scores are normalised over all tokens, not over the level's


@torch.no_grad()
def layout_weights(model: Tiger, dtype: torch.dtype) -> FastWeights:
    """Fold and cast a Tiger's parameters; products will run in ``dtype``."""
    encoder, decoder, config = model.encoder, model.decoder, model.config
    num_levels, scale = len(model.level_sizes), config.width**0.5
    fold_keys, fold_values = [], []
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        cross, by_head = layer.cross, (config.num_heads, config.head_width, config.width)
        query = (cross.query.weight * (cross.norm.weight * scale)).view(by_head)  # (H, E, D)
        key, value = (weight.view(by_head) for weight in cross.key_value.weight.chunk(2))
        out = cross.out.weight.view(config.width, config.num_heads, config.head_width).permute(1, 2, 0)  # (H, E, D)
        fold_keys.append(query.transpose(1, 2) @ key)  # (H, D, D): state of the decoder x state of the encoder
        fold_values.append((out.transpose(1, 2) @ value).transpose(0, 1))  # (D, H, D)
    return FastWeights(
        encoder=tuple(_layer(layer, dtype) for layer in encoder.layers),
        encoder_bias=encoder.bias(config.max_history * num_levels + 1),  # + 1: a user's token
        encoder_norm=encoder.norm.weight * scale,
        layers=tuple(_layer(layer, dtype) for layer in decoder.layers),
        fold_keys=torch.stack(fold_keys).flatten(0, 2).to(dtype),
        fold_values=torch.stack(fold_values).flatten(0, 2).to(dtype),
        embedding=model.embedding.weight,
        head=(model.embedding.weight * decoder.norm.weight).to(dtype),  # T5's D^-0.5 and the norm's D^0.5 cancel
        bias=decoder.bias(num_levels).permute(1, 2, 0).contiguous(),
        floor=torch.tensor((config.width * EPSILON) ** 0.5, device=model.embedding.weight.device),
        num_heads=config.num_heads,
        level_starts=model.level_starts,
        level_sizes=model.level_sizes,
        over_vocabulary=config.normalize == "vocabulary",
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
def encode(weights: FastWeights, tokens: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """(T,) packed tokens -> (T, D) states: what ``Tiger.encoder`` computes."""
    x = weights.embedding.index_select(0, tokens)
    for layer in weights.encoder:
        qkv = product(_normed(x, weights.floor, layer.qkv.dtype), layer.qkv)  # (T, 3*H*E)
        attended = packed_attention(None, qkv, weights.encoder_bias, groups, groups, weights.num_heads, 0.0)
        x = x + product(attended, layer.out)
        x = x + _fed_forward(x, layer, weights)
    return _normed(x, weights.floor, x.dtype) * weights.encoder_norm


@dataclass
class BeamCache:
    """Buffers of one beam search."""

    weights: FastWeights
    num_histories: int
    capacity: int  # rows of a level: histories * width
    keys: Tensor  # (layers, B, H*S, D)
    values: Tensor  # (layers, B, D, H*S)
    absent: Tensor | None  # (B, 1, 1, S) -inf where a history has no token
    slots: Tensor  # (layers, L * capacity, 2*H*E) self-attention keys and values, where each step wrote them
    ancestors: Tensor | None = None  # (B*W, levels so far) slot of each beam and of its ancestor at earlier levels


@torch.no_grad()
def new_cache(weights: FastWeights, context: TigerContext, width: int) -> BeamCache:
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
    absent = None
    if mask is not None:
        absent = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))[:, None, None]
    capacity, num_levels, inner = num_histories * width, len(weights.level_sizes), weights.layers[0].out.shape[1]
    slots = torch.empty(num_layers, num_levels * capacity, 2 * inner, device=states.device)
    return BeamCache(weights, num_histories, capacity, keys, values, absent, slots)


@torch.no_grad()
def step(cache: BeamCache, level: int, codes: Tensor | None, parents: Tensor | None) -> StepOutput:
    """Scores of the codes at ``level``: see ``core.Generator.step``."""
    weights = cache.weights
    if codes is None or parents is None:
        x = weights.embedding[BEGIN].repeat(cache.num_histories, 1)  # (B, D)
        slots = torch.arange(cache.num_histories, device=x.device)[:, None]  # (B, 1)
    else:
        tokens = (codes + weights.level_starts[level - 1]).view(-1)
        x = weights.embedding.index_select(0, tokens)  # (B*W, D)
        slots = _slots(cache, level, parents)  # (B*W, level+1)
    cache.ancestors = slots
    for index, layer in enumerate(weights.layers):
        x = _self_attention(x, layer, weights, cache.slots[index], slots, level * cache.capacity)
        x = _cross_attention(x, layer, weights.num_heads, cache, index)
        x = x + _fed_forward(x, layer, weights)
    shape = (cache.num_histories, x.shape[0] // cache.num_histories)
    return _scores(_normed(x, weights.floor, weights.head.dtype), weights, level, shape)


def _slots(cache: BeamCache, level: int, parents: Tensor) -> Tensor:
    """(B*W, level+1): where every beam's ancestors wrote their keys and values, and where the beam itself will."""
    assert cache.ancestors is not None
    (num_histories, width), device = parents.shape, parents.device
    before = cache.ancestors.shape[0] // num_histories  # beams of the last step
    first = torch.arange(num_histories, device=device)[:, None] * before  # (B, 1)
    own = torch.arange(num_histories * width, device=device) + level * cache.capacity
    earlier = cache.ancestors.index_select(0, (parents + first).view(-1))  # (B*W, level)
    return torch.cat([earlier, own[:, None]], dim=1)


def _normed(x: Tensor, floor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of unit length; the weights behind carry the sqrt(D) that makes it unit root mean square.

    ``floor`` is sqrt(D * epsilon): hypot adds it under the root as RMS norm does, in three operations for seven.
    """
    return (x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)).to(dtype)


def _fed_forward(x: Tensor, layer: _Layer, weights: FastWeights) -> Tensor:
    return product(product(_normed(x, weights.floor, layer.up.dtype), layer.up, relu=True), layer.down)


def _self_attention(x: Tensor, layer: _Layer, weights: FastWeights, kept: Tensor, slots: Tensor, own: int) -> Tensor:
    """x (B*W, D). ``kept`` (L * capacity, 2*H*E) is read at ``slots`` (B*W, level+1) after own rows were written."""
    qkv = product(_normed(x, weights.floor, layer.qkv.dtype), layer.qkv)  # (B*W, 3*H*E)
    (num_beams, num_slots), inner = slots.shape, layer.out.shape[1]
    kept[own : own + num_beams] = qkv[:, inner:]
    if num_slots == 1:
        return x + product(qkv[:, 2 * inner :].contiguous(), layer.out)  # one key: its weight is 1
    attended = [  # in pieces that stay in the processor's cache
        _attend(qkv_rows[:, :inner].float(), kept, slot_rows, weights)
        for qkv_rows, slot_rows in zip(qkv.split(PIECE), slots.split(PIECE), strict=True)
    ]
    joined = attended[0] if len(attended) == 1 else torch.cat(attended)
    return x + product(joined.to(layer.out.dtype), layer.out)


def _attend(query: Tensor, kept: Tensor, slots: Tensor, weights: FastWeights) -> Tensor:
    """(R, H*E) queries against their own R x (level+1) keys and values."""
    (num_beams, num_slots), num_heads = slots.shape, weights.num_heads
    key_value = kept.index_select(0, slots.reshape(-1)).view(num_beams, num_slots, 2, num_heads, -1)
    keys, values = key_value.unbind(2)  # each (R, level+1, H, E)
    scores = (keys * query.view(num_beams, 1, num_heads, -1)).sum(-1)  # (R, level+1, H)
    scores += weights.bias[num_slots - 1, :num_slots]
    return (values * scores.softmax(1)[..., None]).sum(1).view(num_beams, -1)


def _cross_attention(x: Tensor, layer: _Layer, num_heads: int, cache: BeamCache, index: int) -> Tensor:
    """x (B*W, D) against its history's folded keys and values."""
    keys, values = cache.keys[index], cache.values[index]
    query = _normed(x, cache.weights.floor, keys.dtype)
    if cache.num_histories == 1:
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
    start, size = weights.level_starts[level], weights.level_sizes[level]
    if not weights.over_vocabulary:
        return StepOutput(product(states, weights.head[start : start + size]).view(*shape, -1))
    logits = product(states, weights.head).view(*shape, -1)  # (B, W, V)
    return StepOutput(logits[..., start : start + size], logits.float().logsumexp(-1))
