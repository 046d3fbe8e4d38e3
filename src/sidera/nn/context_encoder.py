"""The encoder of OneRec's technical report (arXiv 2506.13695, 2.2): pre-RMSNorm blocks, every token reads every other.

Tokens are jagged: linear layers, norms and dropout see real tokens only, attention goes through
:mod:`sidera.ops.attention`, which pads inside groups of like length. A block is ``x += attention(norm(x));
x += ffn(norm(x))`` with a dense SwiGLU or a mixture of experts; one more norm stands behind the last block.

This is what OneRec-V2 does without: its cost grows with the tokens of the context, its use is in the few that are
written (``benchmarks/lazy.py``).

Shape legend: T tokens of all histories · D width · H heads · E dims of a head.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sidera.nn.code_decoder import DecoderSize, feed_forward
from sidera.nn.dropout import Dropout
from sidera.ops.attention import Layout, attention


class EncoderBlock(nn.Module):
    """Self-attention, full unless ``causal``, and a feed-forward, each behind a norm, with a residual and dropout."""

    def __init__(self, size: DecoderSize, sparse: bool, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = size.num_heads, causal
        self.norm_attention, self.norm_ff = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.ff = feed_forward(size, sparse)
        self.dropout = Dropout(size.dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(T, D) -> (T, D)"""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1))  # (T, 3, H, E)
        x = x + self.dropout(self.out(attention(None, qkv, layout, causal=self.causal).flatten(1)))
        return x + self.dropout(self.ff(self.norm_ff(x)))


class ContextEncoder(nn.Module):
    """``num_layers`` blocks and a norm; widths, heads and experts are those of ``size``."""

    def __init__(self, size: DecoderSize, num_layers: int, sparse: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(size, sparse) for _ in range(num_layers))
        self.norm = nn.RMSNorm(size.width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):  # branches start small, as in the decoder
                small = (2 * num_layers) ** -0.5 if name.endswith(("out", "down")) else 1.0
                nn.init.normal_(module.weight, std=small * module.in_features**-0.5)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(T, D) tokens -> (T, D) states of unit root mean square times a weight."""
        for block in self.blocks:
            x = block(x, layout)
        return cast(Tensor, self.norm(x))
