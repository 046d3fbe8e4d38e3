"""A CodeDecoder's weights as a beam search multiplies them, and the step that does.

A search is many small steps: with 50 beams of width 48 an operation costs its launch, not its arithmetic. So what can
be computed once is: norm weights, their sqrt(D) and the scale of the attention are folded into the matrices behind
them, places into the tables of codes, and the mask of the context is turned into numbers once a search. What is left is
about 25 operations a layer, for 60 of the modules' own (:class:`sidera.nn.code_decoder.DecoderLayer` is the reference
that ``tests/nn/test_code_decoder.py`` holds this to).

Shape legend: B histories · W beams · M beams of all, B * W · S context tokens · D width · H query heads · R groups of
keys and values · E dims of a head · K codes of a level · F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.nn.beam_cache import BeamCache
from sidera.nn.moe import MoE, SwiGLU
from sidera.ops.masks import added
from sidera.ops.waiting import may_ask

KeysValues = tuple[Tensor, Tensor]  # (B, R, S, E) each


@dataclass(frozen=True)
class _Layer:
    query: Tensor  # (H*E, D)
    cross_out: Tensor  # (H*E, D)
    qkv: Tensor  # (3*H*E, D)
    self_out: Tensor  # (H*E, D)
    gate_up: Tensor | None  # (2 F, D); None: experts
    down: Tensor | None  # (F, D)
    experts: MoE | None
    norm: Tensor  # (D,) in front of the experts


@dataclass(frozen=True)
class LaidOutDecoder:
    """Weights for answering."""

    layers: tuple[_Layer, ...]
    codes: tuple[Tensor, ...]  # L-1 of (K, D): what is read of a code at its place
    begin: Tensor  # (D,)
    heads: tuple[tuple[Tensor, Tensor], ...]  # L of (K, D) and (K,)
    floor: Tensor  # () sqrt(D * epsilon), see ``_unit``
    num_heads: int


@torch.no_grad()
def lay_out(decoder: Any, num_heads: int) -> LaidOutDecoder:
    """Fold the parameters of a ``nn.code_decoder.CodeDecoder``."""
    width, vectors = decoder.begin.numel(), decoder.level_vectors
    folded = [
        (head.weight * (norm.weight * width**0.5), head.bias)
        for head, norm in zip(decoder.heads, decoder.norms, strict=True)
    ]
    epsilon = torch.finfo(decoder.begin.dtype).eps  # of nn.RMSNorm
    return LaidOutDecoder(
        layers=tuple(_layer(layer, width, num_heads) for layer in decoder.layers),
        codes=tuple(table.weight + vector for table, vector in zip(decoder.code, vectors[1:], strict=True)),
        begin=decoder.begin + vectors[0],
        heads=tuple(folded),
        floor=torch.tensor((width * epsilon) ** 0.5, device=decoder.begin.device),
        num_heads=num_heads,
    )


def _layer(layer: Any, width: int, num_heads: int) -> _Layer:
    of_scores = (width // num_heads) ** -0.5
    cross, own, forward = (norm.weight * width**0.5 for norm in (layer.norm_cross, layer.norm_self, layer.norm_ff))
    qkv = layer.qkv.weight * own
    qkv[:width] *= of_scores
    dense = layer.ff if isinstance(layer.ff, SwiGLU) else None
    return _Layer(
        query=layer.query.weight * (cross * of_scores),
        cross_out=layer.cross_out.weight.t(),
        qkv=qkv,
        self_out=layer.self_out.weight.t(),
        gate_up=None if dense is None else dense.gate_up.weight * forward,
        down=None if dense is None else dense.down.weight.t(),
        experts=None if dense is not None else layer.ff,
        norm=forward,
    )


class DecoderCache(BeamCache):
    """The beams' keys and values, and the decoder that this search began with."""

    def __init__(self, num_histories: int, width: int, num_positions: int, decoder: LaidOutDecoder) -> None:
        inner = decoder.begin.numel()
        super().__init__(num_histories, width, num_positions, len(decoder.layers), inner, like=decoder.begin)
        self.decoder = decoder
        self._masked: tuple[Tensor, Tensor | None] | None = None

    def bias(self, mask: Tensor) -> Tensor | None:
        """What is added to the scores of the context's tokens, (B, 1, 1, S); None where every one is a token."""
        if self._masked is None or self._masked[0] is not mask:
            bias = None
            if not (may_ask(mask) and bool(mask.all())):
                bias = added(mask, self.rows)[:, None, None]
            self._masked = mask, bias
        return self._masked[1]


def advance(cache: DecoderCache, kvs: Sequence[KeysValues], mask: Tensor, x: Tensor) -> Tensor:
    """Inputs (M, D) of the position that every beam writes now -> states (M, D)."""
    decoder, bias = cache.decoder, cache.bias(mask)
    inner = decoder.begin.numel()
    for index, (layer, (keys, values)) in enumerate(zip(decoder.layers, kvs, strict=True)):
        query = F.linear(_unit(x, decoder.floor), layer.query)
        x = _added(x, _cross(query, keys, values, bias, decoder.num_heads), layer.cross_out)
        query, key_value = F.linear(_unit(x, decoder.floor), layer.qkv).tensor_split((inner,), dim=1)
        x = _added(x, cache.attend(index, query, key_value, decoder.num_heads), layer.self_out)
        x = _fed_forward(x, layer, decoder.floor)
    return x


def next_code_logits(decoder: LaidOutDecoder, states: Tensor, level: int) -> Tensor:
    """(M, D) -> (M, K)"""
    return F.linear(_unit(states, decoder.floor), *decoder.heads[level])


def _unit(x: Tensor, floor: Tensor) -> Tensor:
    """Rows of unit length; the weights behind carry the sqrt(D) that makes it unit root mean square."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _added(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x + y times weight, in x's number format: autocast would round a sum that it fuses."""
    return x + y @ weight if torch.is_autocast_enabled(x.device.type) else torch.addmm(x, y, weight)


def _cross(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, num_heads: int) -> Tensor:
    """Scaled queries (M, H*E) of all beams against their history's keys and values -> (M, H*E)."""
    num_histories, groups = keys.shape[:2]
    by_head = query.view(num_histories, -1, num_heads, keys.shape[-1]).transpose(1, 2)  # (B, H, W, E)
    if groups < num_heads:  # heads of one group lie behind each other
        out = F.scaled_dot_product_attention(
            by_head.reshape(num_histories, groups, -1, keys.shape[-1]), keys, values, attn_mask=bias, scale=1.0
        ).view(by_head.shape)
    else:
        out = F.scaled_dot_product_attention(by_head, keys, values, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).reshape(query.shape)


def _fed_forward(x: Tensor, layer: _Layer, floor: Tensor) -> Tensor:
    unit = _unit(x, floor)
    if layer.gate_up is None or layer.down is None:
        assert layer.experts is not None
        return x + layer.experts(unit * layer.norm)
    gate, up = F.linear(unit, layer.gate_up).chunk(2, dim=-1)
    return _added(x, F.silu(gate).mul_(up), layer.down)
