"""A decoder-only transformer over one stream of tokens: a history is read once, and beams go on writing behind it.

Reading gives keys and values of every layer (:class:`Prefix`), shared by all beams and candidates of a history; a beam
keeps those of its own few tokens (:mod:`sidera.nn.beam_cache`). Scores over both go through one softmax, so that
writing step by step, whole candidates at once (``written``) and training's packed rows tell one story.

Shape legend: T tokens of all rows · B histories · S longest history in tokens · W beams · M beams of all ·
G candidates · P tokens of a candidate · D width · H heads · E dims of a head · Y layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.nn.beam_cache import BeamCache
from sidera.nn.counters import attention_flops, causal_pairs, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.nn.event_features import padded
from sidera.nn.transformer import Block
from sidera.ops.attention import attention, layout_of
from sidera.ops.jagged import with_copies
from sidera.ops.masks import added, causal


@dataclass(frozen=True)
class Prefix:
    """What histories cost once: their last state, and keys and values of every layer."""

    last: Tensor  # (B, D)
    lengths: Tensor  # (B,) events
    mask: Tensor  # (B, S) True = token
    keys: Tensor  # (B, Y, H, S, E), scaled by E^-0.5
    values: Tensor  # (B, Y, H, S, E)

    @property
    def num_histories(self) -> int:
        return self.last.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.last, self.lengths, self.mask, self.keys, self.values

    def padded_to(self, num_histories: int, length: int) -> Prefix:
        """See :class:`sidera.decode.graph.Paddable`."""
        more, longer = num_histories - self.num_histories, length - self.length
        tables = (F.pad(table, (0, 0, 0, longer)) for table in (self.keys, self.values))
        parts = (self.last, self.lengths, F.pad(self.mask, (0, longer)), *tables)
        return Prefix(*(with_copies(part, more) for part in parts))


class StreamCache(BeamCache):
    """Keys and values of what the beams of a search wrote, and the bias that hides the prefix's padding."""

    def __init__(self, prefix: Prefix, width: int, num_positions: int) -> None:
        num_layers, num_heads, _, dims = prefix.keys.shape[1:]
        super().__init__(prefix.num_histories, width, num_positions, num_layers, num_heads * dims, like=prefix.last)
        self.bias = added(prefix.mask, prefix.last)[:, None, None]  # (B, 1, 1, S)

    def attend_all(self, layer: int, qkv: Tensor, prefix: Prefix) -> Tensor:
        """qkv (M, 3, H, E) of this position -> (M, H*E): what every beam reads of its history and of itself."""
        (num_beams, num_positions), written = self.ancestors.shape, self.rows[layer]
        query, key_value = qkv[:, 0], qkv[:, 1:].flatten(1)  # (M, H, E), (M, 2*H*E)
        written.narrow(0, (num_positions - 1) * self.capacity, num_beams).copy_(key_value)
        own = written.index_select(0, self.ancestors.reshape(-1)).view(num_beams, num_positions, 2, *query.shape[1:])
        query = query.to(own.dtype)
        scale = query.shape[-1] ** -0.5
        beams = query.view(self.num_histories, -1, *query.shape[1:]).transpose(1, 2)  # (B, H, W, E)
        before = beams @ prefix.keys[:, layer].transpose(-1, -2) + self.bias  # (B, H, W, S)
        inside = (own[:, :, 0] * query[:, None]).sum(-1) * scale  # (M, P, H)
        inside = inside.unflatten(0, (self.num_histories, -1)).permute(0, 3, 1, 2)  # (B, H, W, P)
        shares = torch.cat((before, inside), dim=-1).softmax(-1)
        read = shares[..., : before.shape[-1]] @ prefix.values[:, layer]  # (B, H, W, E)
        weights = shares[..., before.shape[-1] :].permute(0, 2, 3, 1).flatten(0, 1)  # (M, P, H)
        return read.transpose(1, 2).flatten(0, 1).flatten(1) + (own[:, :, 1] * weights[..., None]).sum(1).flatten(1)


class CodeStream(nn.Module):
    """Blocks over tokens that the model above has made, places included."""

    def __init__(self, width: int, num_layers: int, num_heads: int, ff_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.scale = Dropout(dropout), width**0.5
        self.blocks = nn.ModuleList(Block(width, num_heads, ff_width, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """(T, D) tokens of jagged rows -> (T, D): at each place what the row up to it says."""
        layout, x = layout_of(offsets), self.dropout(self.scale * tokens)
        for block in self.blocks:
            x = block(x, layout)
        out: Tensor = self.norm(x)
        return out

    def read(self, tokens: Tensor, offsets: Tensor, lengths: Tensor) -> Prefix:
        """The same rows, as what beams behind them read. ``lengths`` (B,): events of each."""
        layout, kept = layout_of(offsets, num_tokens=tokens.shape[0]), []
        x = self.dropout(self.scale * tokens)
        for block in map(_as_block, self.blocks):
            qkv = block.asked(x)  # (T, 3, H, E)
            kept.append(qkv[:, 1:])
            x = block.fed(x, attention(None, qkv, layout, causal=True).flatten(1))
        shape = torch.stack(kept, dim=1)  # (T, Y, 2, H, E)
        table, mask = padded(shape.flatten(1), offsets)
        keys, values = table.unflatten(-1, shape.shape[1:]).permute(3, 0, 2, 4, 1, 5)  # (B, Y, H, S, E) each
        return Prefix(self.norm(x[offsets[1:] - 1]), lengths, mask, keys * keys.shape[-1] ** -0.5, values.contiguous())

    def written(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """(B, G, P, D) tokens of candidates behind their histories -> (B, G, P, D) states, with gradient."""
        x = self.dropout(self.scale * tokens)
        of_prefix = added(prefix.mask, x)[:, None, None, None]  # (B, 1, 1, 1, S)
        of_own = added(causal(tokens.shape[2], device=x.device), x)  # (P, P)
        for index, block in enumerate(map(_as_block, self.blocks)):
            qkv = block.asked(x)  # (B, G, P, 3, H, E)
            query, own_keys, own_values = qkv.permute(3, 0, 4, 1, 2, 5)  # (B, H, G, P, E) each
            keys, values = prefix.keys[:, index, :, None], prefix.values[:, index, :, None]  # (B, H, 1, S, E)
            before = query @ keys.transpose(-1, -2) + of_prefix  # (B, H, G, P, S)
            inside = query @ own_keys.transpose(-1, -2) * query.shape[-1] ** -0.5 + of_own  # (B, H, G, P, P)
            shares = torch.cat((before, inside), dim=-1).softmax(-1)
            read = shares[..., : before.shape[-1]] @ values + shares[..., before.shape[-1] :] @ own_values
            x = block.fed(x, read.permute(0, 2, 3, 1, 4).flatten(3))
        return cast(Tensor, self.norm(x))

    def advance(self, prefix: Prefix, cache: StreamCache, tokens: Tensor) -> Tensor:
        """(M, D) tokens of the position that every beam writes now -> (M, D) states."""
        x = self.scale * tokens
        for index, block in enumerate(map(_as_block, self.blocks)):
            qkv = block.asked(x)  # (M, 3, H, E)
            x = block.fed(x, cache.attend_all(index, qkv, prefix))
        return cast(Tensor, self.norm(x))

    def flops(self, lengths: Tensor) -> float:
        """Of one forward pass over rows of so many tokens (B,)."""
        width = self.norm.normalized_shape[0]
        attended = len(self.blocks) * attention_flops(causal_pairs(lengths), width)
        return matmul_flops(self.blocks, int(lengths.sum())) + attended


def _as_block(module: nn.Module) -> Block:
    assert isinstance(module, Block)
    return module
