"""The decoder that OneRec's architectures share: it writes codes while looking at keys and values it is given.

A layer is ``x += cross(norm(x), k, v); x += self(norm(x)); x += ffn(norm(x))`` with RMSNorm in front of each
(OneRec-V2, 2508.20900, 3.3; the technical report's decoder, 2506.13695, 2.3, has the first two the other way round;
pre-norm everywhere is this project's reading). Where keys and values come from makes the architecture: the lazy takes
them from the context processor, many layers from one pair; the encoder-decoder projects its encoder's states in every
layer. Query heads share ``num_kv_groups`` heads of keys and values (grouped-query attention). Feed-forwards from layer
``moe_from`` on are mixtures of experts.

All targets of a request look at the same keys and values: nothing of the context is copied per target or per beam.
Streams are jagged (:mod:`sidera.ops.shared_keys`): requests with one target do not pay for a neighbour's five; only a
GPU, or many beams, have the queries of the cross-attention padded. On the CPU, training takes requests in the order of
their numbers of targets and writes the products of its few queries out.

Shape legend: B histories · G most targets or beams of one · M streams: targets or beams of all · P places of a
stream · S context tokens · D width · H query heads · R groups of keys and values · E dims of a head · K codes of a
level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.config import check_counts, check_value
from sidera.nn.dropout import Dropout
from sidera.nn.laid_out_decoder import DecoderCache, KeysValues, LaidOutDecoder, advance, lay_out, next_code_logits
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.moe import Gate, MoE, SwiGLU
from sidera.ops.attention import attention, equal_layout
from sidera.ops.shared_keys import Streams, shared_attention

FEW_QUERIES = 24  # of a history and group, for which the same holds in the cross-attention's training


@dataclass(frozen=True)
class DecoderSize:
    """Every size of a :class:`CodeDecoder`."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_groups: int = 4
    ff_width: int = 256
    dropout: float = 0.1
    num_experts: int = 0  # 0: every feed-forward is dense
    num_active: int = 2
    num_shared: int = 1
    expert_width: int = 128
    moe_from: int = 1  # first layer whose feed-forward is a mixture of experts
    gate: Gate = "sigmoid"
    balance_rate: float = 1e-3
    code_std: float = 0.0  # of the codes' input vectors at the start; 0: width^-0.5

    def __post_init__(self) -> None:
        check_counts("[model]", self, "width", "num_layers", "num_heads", "num_kv_groups", "ff_width")
        check_counts("[model]", self, "num_active", "expert_width")
        check_counts("[model]", self, "num_experts", "num_shared", "moe_from", low=0)
        heads, groups = self.num_heads, self.num_kv_groups
        check_value("[model]", "num_heads", heads, self.width % heads == 0, f"a divisor of width ({self.width})")
        check_value("[model]", "num_kv_groups", groups, heads % groups == 0, f"a divisor of num_heads ({heads})")
        check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
        fits = 0 <= self.code_std <= 10
        check_value("[model]", "code_std", self.code_std, fits, "0 (width^-0.5) to 10")
        if self.num_experts:
            fits = self.num_active <= self.num_experts
            check_value("[model]", "num_active", self.num_active, fits, f"at most num_experts ({self.num_experts})")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @classmethod
    def of(cls, config: object, **fixed: Any) -> DecoderSize:
        """The sizes that a model's Config has under the same names; ``fixed``: those that it names otherwise or not."""
        own = {field.name: getattr(config, field.name) for field in fields(cls) if hasattr(config, field.name)}
        return cls(**own | fixed)


def feed_forward(size: DecoderSize, sparse: bool) -> nn.Module:
    """A mixture of experts where ``size`` has experts and ``sparse`` wants them here, a dense SwiGLU otherwise."""
    if not (sparse and size.num_experts):
        return SwiGLU(size.width, size.ff_width)
    return MoE(
        size.width,
        size.expert_width,
        size.num_experts,
        size.num_active,
        size.num_shared,
        size.gate,
        size.balance_rate,
    )


class DecoderLayer(nn.Module):
    """Cross-attention to given keys and values, causal self-attention inside a stream, feed-forward."""

    def __init__(self, size: DecoderSize, index: int) -> None:
        super().__init__()
        self.size = size
        width = size.width
        self.norm_cross, self.norm_self, self.norm_ff = (nn.RMSNorm(width) for _ in range(3))
        self.query, self.cross_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.qkv, self.self_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.ff = feed_forward(size, sparse=index >= size.moe_from)
        self.dropout = Dropout(size.dropout)

    def forward(self, x: Tensor, kv: KeysValues, mask: Tensor, streams: Streams) -> Tensor:
        """x (M, P, D), mask (B, S) True = attend -> (M, P, D)."""
        x = x + self.dropout(self.cross(self.norm_cross(x), kv, mask, streams))
        qkv = self.qkv(self.norm_self(x))
        packed = qkv.view(-1, 3, self.size.num_heads, self.size.head_width)  # (M*P, 3, H, E)
        attended = attention(None, packed, equal_layout(*x.shape[:2]), causal=True).view(x.shape)
        x = x + self.dropout(self.self_out(attended))
        return x + self.dropout(self.ff(self.norm_ff(x)))

    def cross(self, x: Tensor, kv: KeysValues, mask: Tensor, streams: Streams) -> Tensor:
        """(M, P, D): all streams of a history ask its one set of keys."""
        query = self.query(x).unflatten(-1, (self.size.num_heads, self.size.head_width))
        return self.cross_out(shared_attention(query, *kv, mask, streams).flatten(2))


def _select(kvs: Sequence[KeysValues], histories: Tensor) -> list[KeysValues]:
    """Keys and values of ``histories``; what layers share stays shared."""
    chosen: dict[int, Tensor] = {}
    for pair in kvs:
        for part in pair:
            if id(part) not in chosen:
                chosen[id(part)] = part.index_select(0, histories)
    return [(chosen[id(keys)], chosen[id(values)]) for keys, values in kvs]


class CodeDecoder(nn.Module):
    """Embeds codes, runs the layers, scores the codes of each level."""

    def __init__(self, size: DecoderSize, level_sizes: Sequence[int]) -> None:
        super().__init__()
        self.size, self.level_sizes = size, tuple(level_sizes)
        self.begin = nn.Parameter(torch.randn(size.width) * 0.02)
        self.code = nn.ModuleList(nn.Embedding(codes, size.width) for codes in self.level_sizes[:-1])
        self.level_vectors = nn.Parameter(torch.randn(len(self.level_sizes), size.width) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(size, index) for index in range(size.num_layers))
        self.norms = nn.ModuleList(nn.RMSNorm(size.width) for _ in self.level_sizes)  # one per place, as in V2
        self.heads = nn.ModuleList(nn.Linear(size.width, codes) for codes in self.level_sizes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # branches start small, so that a stream keeps its scale through 2 layers or 24
                small = (3 * size.num_layers) ** -0.5 if name.endswith(("cross_out", "self_out", "down")) else 1.0
                nn.init.normal_(module.weight, std=small * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=size.code_std or size.width**-0.5)
        self._laid_out = MadeOfWeights[LaidOutDecoder]()
        self._parts = tuple(part for part in self.modules() if part._parameters)
        if size.code_std:  # or the stream's places would be as hard to hear beside what is read as its codes were
            for vectors in (self.begin, self.level_vectors):
                nn.init.normal_(vectors, std=size.code_std / 2)

    def embed(self, sids: Tensor) -> Tensor:
        """Codes (..., L) -> inputs (..., L, D): begin, then all codes but the last."""
        parts = [self.begin.expand(*sids.shape[:-1], -1)]
        parts += [table(sids[..., level]) for level, table in enumerate(self.code)]
        return torch.stack(parts, dim=-2) + self.level_vectors

    def forward(self, x: Tensor, kvs: Sequence[KeysValues], mask: Tensor, streams: Streams) -> Tensor:
        """Inputs (M, P, D), keys and values of every layer, mask (B, S) -> states (M, P, D)."""
        moved: Tensor | None = None
        if self._few_queries(x, kvs, streams):
            streams, histories, moved = streams.sorted()
            if histories is not None and moved is not None:
                x, mask = x.index_select(0, moved), mask.index_select(0, histories)
                kvs = _select(kvs, histories)
        for layer, kv in zip(self.layers, kvs, strict=True):
            x = layer(x, kv, mask, streams)
        return x if moved is None else x.index_select(0, moved.argsort())

    def _few_queries(self, x: Tensor, kvs: Sequence[KeysValues], streams: Streams) -> bool:
        """Whether writing the cross-attention out is possible and cheaper than the fused kernel."""
        queries = streams.most * x.shape[1] * (self.size.num_heads // self.size.num_kv_groups)
        plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return plain and torch.is_grad_enabled() and kvs[0][0].requires_grad and 0 < queries <= FEW_QUERIES

    def logits(self, states: Tensor, level: int) -> Tensor:
        """(..., D) states of the place that writes ``level`` -> (..., K)."""
        logits: Tensor = self.heads[level](self.norms[level](states))
        return logits

    def log_probs(self, sids: Tensor, kvs: Sequence[KeysValues], mask: Tensor, streams: Streams) -> Tensor:
        """Log-probability of every code of ``sids`` (M, L) -> (M, L)."""
        return self.code_log_probs(self(self.inputs(sids), kvs, mask, streams), sids)

    def code_logits(self, sids: Tensor, kvs: Sequence[KeysValues], mask: Tensor) -> list[Tensor]:
        """Codes (B, G, L) of G candidates of each history -> per level (B, G, K)."""
        states = self(self.inputs(sids.flatten(0, 1)), kvs, mask, Streams(*sids.shape[:2]))
        return [logits.unflatten(0, sids.shape[:2]) for logits in self.all_logits(states)]

    def inputs(self, sids: Tensor) -> Tensor:
        """Codes (M, L) of single items -> inputs (M, L, D)."""
        return self.embed(sids)

    def code_log_probs(self, states: Tensor, sids: Tensor) -> Tensor:
        """States (M, L, D) of the inputs of ``sids`` (M, L) -> (M, L)."""
        found = [
            logits.log_softmax(-1).gather(-1, sids[:, level, None]).squeeze(-1)
            for level, logits in enumerate(self.all_logits(states))
        ]
        return torch.stack(found, dim=-1)

    def all_logits(self, states: Tensor) -> list[Tensor]:
        """States (M, L, D) -> per level (M, K) float32."""
        return [self.logits(states[:, level], level).float() for level in range(len(self.level_sizes))]

    def new_cache(self, num_histories: int, width: int) -> DecoderCache:
        """Room for one search of at most ``width`` beams a history."""
        weights = (weight for part in self._parts for weight in part._parameters.values() if weight is not None)
        laid_out = self._laid_out.get(weights, lambda: lay_out(self, self.size.num_heads))
        return DecoderCache(num_histories, width, self.num_positions, laid_out)

    @property
    def num_positions(self) -> int:
        """P, of the longest stream that is written."""
        return len(self.level_sizes)

    def train(self, mode: bool = True) -> CodeDecoder:
        """Switching modes drops the weights laid out for answering."""
        self._laid_out.drop()
        return super().train(mode)

    @torch.no_grad()
    def step(
        self, cache: DecoderCache, kvs: Sequence[KeysValues], mask: Tensor, level: int, codes: Tensor | None,
        parents: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, W, K) of the next code of every beam; see ``core.Generator.step``."""
        cache.begin_position(parents)
        if codes is None:
            x = cache.decoder.begin.expand(cache.num_beams, -1)
        else:
            x = F.embedding(codes.flatten(), cache.decoder.codes[level - 1])
        return self.written(cache, kvs, mask, x, level)

    def written(self, cache: DecoderCache, kvs: Sequence[KeysValues], mask: Tensor, x: Tensor, level: int) -> Tensor:
        """Inputs (M, D) of the position that every beam writes now -> logits (B, W, K) of its code at ``level``."""
        states = advance(cache, kvs, mask, x)
        return next_code_logits(cache.decoder, states, level).unflatten(0, (cache.num_histories, -1))
