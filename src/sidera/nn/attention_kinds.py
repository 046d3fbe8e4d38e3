"""The ways in which a causal stack can read what came before: a full square, or less for long histories.

* ``full``: softmax attention over everything before (``ops/attention.py``); its cost grows with the square of a length.
* ``linear``: ``nn/linear_attention.py``, a running sum instead of a softmax; the cost grows with the length.
* ``mla``: ``nn/latent_attention.py``, full attention whose keys and values come out of one narrow vector per event.
* ``sparse``: ``nn/sparse_attention.py``, a window, a few chosen blocks and a summary of every block.

Each takes normalised tokens (T, D) and gives what they read (T, D), before the output projection of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sidera.config import check_counts
from sidera.nn.counters import attention_flops, causal_pairs
from sidera.nn.latent_attention import LatentAttention
from sidera.nn.linear_attention import LinearAttention
from sidera.nn.sparse_attention import SparseAttention
from sidera.ops.attention import Layout, attention

Kind = Literal["full", "linear", "mla", "sparse"]


@dataclass(frozen=True)
class AttentionKind:
    """Which one, and the sizes that only some of them have."""

    kind: Kind = "full"
    latent_width: int = 32  # mla: numbers of the vector that keys and values come out of
    block_size: int = 32  # sparse: events of a block, and of the window
    num_blocks: int = 4  # sparse: blocks that are read event by event

    def __post_init__(self) -> None:
        check_counts("[model]", self, "latent_width", "block_size", "num_blocks")

    def build(self, width: int, num_heads: int) -> FullAttention | LinearAttention | LatentAttention | SparseAttention:
        if self.kind == "linear":
            return LinearAttention(width, num_heads)
        if self.kind == "mla":
            return LatentAttention(width, num_heads, self.latent_width)
        if self.kind == "sparse":
            return SparseAttention(width, num_heads, self.block_size, self.num_blocks)
        return FullAttention(width, num_heads)


class FullAttention(nn.Module):
    """Causal softmax attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        return attention(None, self.asked(x_TD), layout, causal=True).flatten(1)

    def asked(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3, H, D/H): query, key and value of every token."""
        qkv: Tensor = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        return qkv

    def last(self, x_TD: Tensor, layout: Layout, ends: Tensor) -> Tensor:
        """(B, D): what :meth:`forward` gives the tokens ``ends`` (B,), the last of each row. Of the others keys and
        values are made, and nothing else."""
        width = x_TD.shape[1]
        (query, key_value), biases = (part.split((width, 2 * width)) for part in (self.qkv.weight, self.qkv.bias))
        asked = nn.functional.linear(x_TD[ends], query, biases[0]).unflatten(-1, (self.num_heads, -1))
        read = nn.functional.linear(x_TD, key_value, biases[1]).unflatten(-1, (2, self.num_heads, -1))
        return attention(asked, read, layout.asked_by(1)).flatten(1)

    def flops(self, lengths: Tensor) -> float:
        """Of scores and sums over histories of these lengths (B,), without the projections."""
        return attention_flops(causal_pairs(lengths), self.qkv.in_features)


FULL = AttentionKind()
