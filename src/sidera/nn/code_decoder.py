"""The decoder that OneRec's architectures share: it writes codes while looking at keys and values it is given.

A layer is ``x += cross(norm(x), k, v); x += self(norm(x)); x += ffn(norm(x))`` with RMSNorm in front of each
(OneRec-V2, 2508.20900, 3.3; the technical report's decoder, 2506.13695, 2.3, has the first two the other way round;
pre-norm everywhere is this project's reading). Where keys and values come from makes the architecture: the lazy takes
them from the context processor, many layers from one pair; the encoder-decoder projects its encoder's states in every
layer. Query heads share ``num_kv_groups`` heads of keys and values (grouped-query attention). Feed-forwards from layer
``moe_from`` on are mixtures of experts.

All targets of a request look at the same keys and values: nothing of the context is copied per target or per beam.

Shape legend: B histories · G targets or beams of each · P places of a target's stream · S context tokens · D width ·
H query heads · R groups of keys and values · E dims of a head · K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.config import check_value
from sidera.nn.dropout import Dropout
from sidera.nn.moe import Gate, MoE, SwiGLU

KeysValues = tuple[Tensor, Tensor]  # (B, R, S, E) each


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

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "num_kv_groups", "ff_width", "num_active", "expert_width"):
            check_value("[model]", name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
        heads, groups = self.num_heads, self.num_kv_groups
        check_value("[model]", "num_heads", heads, self.width % heads == 0, f"a divisor of width ({self.width})")
        check_value("[model]", "num_kv_groups", groups, heads % groups == 0, f"a divisor of num_heads ({heads})")
        check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
        if self.num_experts:
            fits = self.num_active <= self.num_experts
            check_value("[model]", "num_active", self.num_active, fits, f"at most num_experts ({self.num_experts})")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


class DecoderLayer(nn.Module):
    """Cross-attention to given keys and values, causal self-attention inside a stream, feed-forward."""

    def __init__(self, size: DecoderSize, index: int) -> None:
        super().__init__()
        self.size = size
        width = size.width
        self.norm_cross, self.norm_self, self.norm_ff = (nn.RMSNorm(width) for _ in range(3))
        self.query, self.cross_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.qkv, self.self_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        sparse = size.num_experts > 0 and index >= size.moe_from
        self.ff: nn.Module = (
            MoE(width, size.expert_width, size.num_experts, size.num_active, size.num_shared, size.gate,
                size.balance_rate)
            if sparse
            else SwiGLU(width, size.ff_width)
        )  # fmt: skip
        self.dropout = Dropout(size.dropout)

    def forward(self, x: Tensor, kv: KeysValues, mask: Tensor) -> Tensor:
        """x (B, G, P, D); mask (B, 1, 1, S) True = attend -> (B, G, P, D)."""
        x = x + self.dropout(self.cross(self.norm_cross(x), kv, mask))
        q, k, v = self._heads(self.norm_self(x))  # (B*G, H, P, E) each
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.self_out(attended.transpose(1, 2).reshape(x.shape)))
        return x + self.dropout(self.ff(self.norm_ff(x)))

    def step(self, x: Tensor, kv: KeysValues, mask: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """One more place of every stream. x (B, G, 1, D), past (B*G, H, places, E) -> the same and the new past."""
        x = x + self.cross(self.norm_cross(x), kv, mask)
        q, k, v = self._heads(self.norm_self(x))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.self_out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.ff(self.norm_ff(x)), (k, v)

    def cross(self, x: Tensor, kv: KeysValues, mask: Tensor) -> Tensor:
        """(B, G, P, D): all streams of a history ask its one set of keys, heads of a group side by side."""
        batch, streams, places, width = x.shape
        groups, dim = self.size.num_kv_groups, self.size.head_width
        per_group = self.size.num_heads // groups
        q = self.query(x).view(batch, streams * places, groups, per_group, dim)
        q = q.permute(0, 2, 3, 1, 4).reshape(batch, groups, per_group * streams * places, dim)
        out = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask)
        out = out.view(batch, groups, per_group, streams * places, dim).permute(0, 3, 1, 2, 4)
        return self.cross_out(out.reshape(batch, streams, places, width))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, streams, places, _ = x.shape
        shape = (batch * streams, places, 3, self.size.num_heads, self.size.head_width)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        return q, k, v


@dataclass
class DecoderCache:
    """Self-attention keys and values of every layer for the beams of one search."""

    width: int  # beams per history at the last step
    past: list[KeysValues] = field(default_factory=list)  # per layer (B*W, H, places, E)

    def follow(self, parents: Tensor) -> None:
        """Let beam w of the next step continue beam ``parents[:, w]`` of the last. parents (B, W')"""
        rows = torch.arange(len(parents), device=parents.device)[:, None] * self.width + parents
        flat = rows.flatten()
        self.past = [(k[flat], v[flat]) for k, v in self.past]
        self.width = parents.shape[1]


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
                nn.init.normal_(module.weight, std=size.width**-0.5)

    def embed(self, sids: Tensor) -> Tensor:
        """Codes (B, G, L) -> inputs (B, G, L, D): begin, then all codes but the last."""
        parts = [self.begin.expand(*sids.shape[:2], -1)]
        parts += [table(sids[:, :, level]) for level, table in enumerate(self.code)]
        return torch.stack(parts, dim=2) + self.level_vectors

    def forward(self, x: Tensor, kvs: Sequence[KeysValues], mask: Tensor) -> Tensor:
        """Inputs (B, G, P, D), keys and values of every layer, mask (B, S) -> states (B, G, P, D)."""
        keep = mask[:, None, None, :]
        for layer, kv in zip(self.layers, kvs, strict=True):
            x = layer(x, kv, keep)
        return x

    def logits(self, states: Tensor, level: int) -> Tensor:
        """(..., D) states of the place that writes ``level`` -> (..., K)."""
        logits: Tensor = self.heads[level](self.norms[level](states))
        return logits

    def code_log_probs(self, states: Tensor, sids: Tensor) -> Tensor:
        """States (B, G, L, D) of the inputs of ``sids`` (B, G, L) -> (B, G, L) log-probabilities."""
        found = []
        for level in range(len(self.level_sizes)):
            log_p = self.logits(states[:, :, level], level).float().log_softmax(-1)
            found.append(log_p.gather(-1, sids[:, :, level, None]).squeeze(-1))
        return torch.stack(found, dim=-1)

    def step(
        self, cache: DecoderCache, kvs: Sequence[KeysValues], mask: Tensor, level: int, codes: Tensor | None,
        parents: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, W, K) of the next code of every beam; see ``core.Generator.step``."""
        num_histories = mask.shape[0]
        if codes is None or parents is None:
            x = (self.begin + self.level_vectors[0]).expand(num_histories, 1, 1, -1)
        else:
            cache.follow(parents)
            table = cast(nn.Embedding, self.code[level - 1])
            x = (table(codes) + self.level_vectors[level])[:, :, None]
        keep = mask[:, None, None, :]
        new: list[KeysValues] = []
        for index, (module, kv) in enumerate(zip(self.layers, kvs, strict=True)):
            x, past = cast(DecoderLayer, module).step(x, kv, keep, cache.past[index] if cache.past else None)
            new.append(past)
        cache.past = new
        return self.logits(x[:, :, 0], level)
