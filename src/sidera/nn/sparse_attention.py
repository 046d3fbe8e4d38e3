"""Sparse attention in three branches, as in native sparse attention (DeepSeek 2025, arXiv 2502.11089).

A history is cut into blocks. A query reads (1) a summary of every block before its own, (2) the events of the few
blocks before its own whose summaries weigh most, and (3) the last ``block_size`` events, its own among them. A gate
of the query weighs the three. The cost of an event is that of its window, its chosen blocks and one summary a block.

A summary is the mean of the block's keys, and of its values, each with a learned vector of its place in the block,
and a Dense behind it. The paper lets every query choose its blocks. Here the first query of a block chooses for all of
it, so that keys are gathered once. No later query may have a say, or it would tell an earlier one what came.

Shape legend: T tokens · b rows of a table · s longest row · n blocks · c events of a block · m chosen blocks ·
H heads · E dims of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.ops.attention import Layout
from sidera.ops.masks import NEVER, causal
from sidera.ops.tables import by_table


class SparseAttention(nn.Module):
    """(T, D) -> (T, D)"""

    def __init__(self, width: int, num_heads: int, block_size: int, num_blocks: int) -> None:
        super().__init__()
        self.num_heads, self.block_size, self.num_blocks = num_heads, block_size, num_blocks
        head_width = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.gate = nn.Linear(width, 3 * num_heads)
        self.place = nn.Parameter(torch.zeros(2, block_size, head_width))  # of keys and of values
        self.key, self.value = nn.Linear(head_width, head_width), nn.Linear(head_width, head_width)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        qkv, gates = self.qkv(x_TD), self.gate(x_TD).sigmoid()
        joined = torch.cat((qkv, gates.to(qkv.dtype)), dim=1)
        return by_table(joined, layout, self.table)

    def table(self, joined: Tensor) -> Tensor:
        """(b, s, 3 H E + 3 H) queries, keys, values and gates -> (b, s, H E)"""
        length, size, heads = joined.shape[1], self.block_size, self.num_heads
        joined = F.pad(joined, (0, 0, 0, -length % size))
        qkv, gates = joined.tensor_split((joined.shape[2] - 3 * heads,), dim=2)
        gates = (
            gates.unflatten(2, (3, heads)).permute(2, 0, 3, 1).unflatten(3, (-1, size))[..., None]
        )  # (3, b, H, n, c)
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unflatten(3, (-1, size))
        of_blocks, chosen = self.summaries(q, k, v)
        branches = (of_blocks, self.of_chosen(q, k, v, chosen), self.of_window(q, k, v))
        read = sum(gate * branch for gate, branch in zip(gates, branches, strict=True))
        return read.flatten(2, 3).transpose(1, 2).flatten(2)[:, :length]

    def summaries(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of the summaries (b, H, n, c, E), and the blocks chosen by each block (b, n, m), -1 for none."""
        keys = self.key((k + self.place[0].to(k.dtype)).mean(3))  # (b, H, n, E)
        values = self.value((v + self.place[1].to(v.dtype)).mean(3))
        number = keys.shape[2]
        scores = torch.einsum("bhnce,bhme->bhncm", q, keys) * q.shape[-1] ** -0.5
        before = torch.ones(number, number, dtype=torch.bool, device=q.device).tril(-1)  # (n, n)
        weights = softmax_or_zero(scores.masked_fill(~before[:, None], NEVER))
        with torch.no_grad():
            says = weights[:, :, :, 0].sum(1).masked_fill(~before, NEVER)  # (b, n, n) of the first query of each block
            best, chosen = says.topk(min(self.num_blocks, number), dim=2)
            chosen = chosen.masked_fill(best == NEVER, -1)
        return torch.einsum("bhncm,bhme->bhnce", weights, values.to(weights.dtype)), chosen

    def of_chosen(self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
        """Softmax over the events of the chosen blocks: (b, H, n, c, E)"""
        rows, heads, number, size, dims = q.shape
        index = (chosen.clamp(min=0).flatten(1) + number * torch.arange(rows, device=q.device)[:, None]).flatten()
        there = (chosen >= 0).repeat_interleave(size, dim=2)[:, None, :, None]  # (b, 1, n, 1, m c)

        def gathered(part: Tensor) -> Tensor:
            flat = part.permute(0, 2, 1, 3, 4).flatten(0, 1).index_select(0, index)  # (b n m, H, c, E)
            return flat.view(rows, number, -1, heads, size, dims).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)

        scores = (q @ gathered(k).transpose(-1, -2) * dims**-0.5).masked_fill(~there, NEVER)
        return softmax_or_zero(scores) @ gathered(v)

    def of_window(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax over the newest ``block_size`` events: (b, H, n, c, E)"""
        size = self.block_size

        def with_last(part: Tensor) -> Tensor:
            return torch.cat((F.pad(part, (0, 0, 0, 0, 1, 0))[:, :, :-1], part), dim=3)  # (b, H, n, 2 c, E)

        mask = causal(size, 2 * size, newest=size, device=q.device).repeat(q.shape[2], 1, 1)  # (n, c, 2 c)
        mask[0, :, :size] = False  # nothing stands before the first block
        scores = q @ with_last(k).transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.masked_fill(~mask, NEVER).softmax(-1) @ with_last(v)

    def flops(self, lengths: Tensor) -> float:
        """Of scores and sums over histories of these lengths (B,), without the projections."""
        blocks = lengths / self.block_size
        keys = blocks + self.block_size * (2 + blocks.clamp(max=self.num_blocks))
        return 4.0 * self.qkv.in_features * float((lengths * keys).sum())


def softmax_or_zero(scores: Tensor) -> Tensor:
    """Over the last dimension; zeros where every score is -inf."""
    largest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - largest).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
