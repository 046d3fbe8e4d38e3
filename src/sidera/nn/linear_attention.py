"""Causal linear attention: a running sum in place of a softmax (Katharopoulos et al. 2020, arXiv 2006.16236).

With f(x) = elu(x) + 1 the weight of a pair is f(q) f(k), normalised by their sum. Then a state of E x E numbers holds
all that came before, and a history costs its length and not its square. It is computed in chunks: pairs inside a chunk
as a small square, everything before it through the state.

Shape legend: b rows of a table · s longest row · c events of a chunk · n chunks · H heads · E dims of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.ops.attention import Layout
from sidera.ops.tables import by_table

CHUNK = 64
EPSILON = 1e-6


class LinearAttention(nn.Module):
    """(T, D) -> (T, D)"""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        qkv = self.qkv(x_TD).unflatten(-1, (3, self.num_heads, -1))  # (T, 3, H, E)
        return by_table(qkv, layout, causal_linear_attention).flatten(1)

    def flops(self, lengths: Tensor) -> float:
        """Of the squares of chunks and of the states, over histories of these lengths (B,)."""
        width = self.qkv.in_features
        in_chunks = 4.0 * width * float((lengths.clamp(max=CHUNK) * lengths).sum())
        return in_chunks + 4.0 * width * (width // self.num_heads) * float(lengths.sum())


def causal_linear_attention(qkv: Tensor, chunk: int = CHUNK) -> Tensor:
    """(b, s, 3, H, E) -> (b, s, H, E)"""
    length = qkv.shape[1]
    chunk = min(chunk, max(length, 1))
    q, k, v = F.pad(qkv, (0, 0) * 3 + (0, -length % chunk)).permute(2, 0, 3, 1, 4)  # (b, H, n c, E)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)  # the last number sums the weights
    q, k, v = (part.unflatten(2, (-1, chunk)) for part in (q, k, v))  # (b, H, n, c, E or E + 1)
    states = k.transpose(-1, -2) @ v  # (b, H, n, E, E + 1)
    before = states.cumsum(2) - states
    weights = (q @ k.transpose(-1, -2)).tril()
    read = (weights @ v + q @ before).flatten(2, 3)[:, :, :length]
    return (read[..., :-1] / (read[..., -1:] + EPSILON)).transpose(1, 2)
