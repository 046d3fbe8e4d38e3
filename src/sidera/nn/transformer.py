"""The causal item encoder that SASRec and sidera's generator share: a vector per event, reading what came before.
``nn/code_stream.py`` has the same blocks for streams that are written on.

Pre-norm transformer blocks on jagged tokens (SASRec, arXiv 1808.09781, with GELU and pre-norm as in later practice).
Linear layers, norms and dropout see real tokens only. Attention is full or one of ``nn/attention_kinds.py``.

Initialisation decides here: event vectors enter scaled by sqrt(D) and the linear layers start small (std 0.02), so
that at first a state is mostly its own event. With PyTorch's default layers and unscaled vectors the item's own signal
drowns in the residual stream, and training needs many times the epochs (docs/evidence/log.md has the figures).

Shape legend: T tokens of all histories · D width · H heads.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sidera.nn.attention_kinds import FULL, AttentionKind, FullAttention
from sidera.nn.counters import matmul_flops
from sidera.nn.dropout import Dropout
from sidera.ops.attention import Layout


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual and dropout on its output."""

    def __init__(self, width: int, num_heads: int, ff_width: int, dropout: float, kind: AttentionKind = FULL) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = kind.build(width, num_heads)
        self.out = nn.Linear(width, width)
        self.norm_ff = nn.LayerNorm(width)
        self.up = nn.Linear(width, ff_width)
        self.down = nn.Linear(ff_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        return self.fed(x_TD, self.attention(self.norm_attention(x_TD), layout))

    def asked(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3, H, E): queries, keys and values of full attention, for who lets others read them."""
        return cast(FullAttention, self.attention).asked(self.norm_attention(x))

    def last(self, x_TD: Tensor, layout: Layout, ends: Tensor) -> Tensor:
        """(B, D): what :meth:`forward` gives the tokens ``ends`` (B,), the last of each row."""
        normed = self.norm_attention(x_TD)
        if isinstance(self.attention, FullAttention):
            return self.fed(x_TD[ends], self.attention.last(normed, layout, ends))
        return self.fed(x_TD[ends], self.attention(normed, layout)[ends])

    def fed(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: (..., D) of the stream and what was read for it -> (..., D)."""
        x = x + self.dropout(self.out(attended))
        hidden = nn.functional.gelu(self.up(self.norm_ff(x)))  # (..., F)
        return x + self.dropout(self.down(hidden))


class CausalEncoder(nn.Module):
    """Position embedding, blocks and a last norm over event vectors that the model above has made."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        ff_width: int,
        max_history: int,
        dropout: float,
        kind: AttentionKind = FULL,
    ) -> None:
        super().__init__()
        self.position = nn.Embedding(max_history, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, ff_width, dropout, kind) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.scale = width**0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, events_TD: Tensor, layout: Layout) -> Tensor:
        """(T, D) event vectors -> (T, D): at each place what the history up to it says."""
        x_TD = self._placed(events_TD, layout)
        for block in self.blocks:
            x_TD = block(x_TD, layout)
        return self.norm(x_TD)

    def last(self, events_TD: Tensor, layout: Layout, ends: Tensor) -> Tensor:
        """(B, D): what :meth:`forward` gives the last event of each history, at ``ends`` (B,). The last block is paid
        for these alone."""
        x_TD, blocks = self._placed(events_TD, layout), cast(list[Block], list(self.blocks))
        for block in blocks[:-1]:
            x_TD = block(x_TD, layout)
        return self.norm(blocks[-1].last(x_TD, layout, ends))

    def _placed(self, events_TD: Tensor, layout: Layout) -> Tensor:
        placed: Tensor = self.dropout(self.scale * events_TD + self.position(layout.positions))
        return placed

    def flops(self, lengths: Tensor) -> float:
        """Of one forward pass over histories of these lengths (B,)."""
        pairs = sum(cast(Block, block).attention.flops(lengths) for block in self.blocks)
        return matmul_flops(self.blocks, int(lengths.sum())) + pairs
