"""HSTU blocks: attention through a silu instead of a softmax, gated, with biases of position and time, and without a
feed-forward (Zhai et al. 2024, arXiv 2402.17152). The attention itself stands in ``ops/silu_attention.py``.

    u, q, k, v = silu(norm(x) W)          # one product; the norm has no weights
    x = x + dropout(norm(attention(q, k, v)) * u) W_o

Every layer has its own bias tables: one number for each distance in positions and one for each bucket of seconds,
shared by its heads. The seconds are those between an event and the moment at which the next one is asked for: in
training the time of the next event, when answering the time of the request. So a state knows when it is asked, and
never what comes.

Shape legend: T tokens of all histories · B histories · D width · H heads.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.nn.counters import attention_flops, causal_pairs, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.ops.silu_attention import TIME_BUCKETS, Pairs, last_silu_attention, silu_attention

TIMELESS = 0.1  # share of training histories whose times are hidden
EPSILON = 1e-6


class HSTUBlock(nn.Module):
    """(T, D) -> (T, D)"""

    def __init__(self, width: int, num_heads: int, max_history: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.max_history = num_heads, max_history
        self.gate_query_key_value = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.by_position = nn.Parameter(torch.empty(max_history))
        self.by_time = nn.Parameter(torch.empty(TIME_BUCKETS))
        self.dropout = Dropout(dropout)
        for small in (self.gate_query_key_value.weight, self.by_position, self.by_time):
            nn.init.normal_(small, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_TD: Tensor, pairs: Pairs) -> Tensor:
        width = x_TD.shape[1]
        gate, qkv = F.silu(self.gate_query_key_value(_normed(x_TD))).split((width, 3 * width), dim=1)
        qkv = qkv.unflatten(1, (3, self.num_heads, -1))  # (T, 3, H, D/H)
        # divided by the longest history that is read and not by the length of this one, as in the published code
        read = silu_attention(qkv, pairs, self.by_position, self.by_time, self.max_history)
        return self._gated(x_TD, gate, read)

    def last(self, x_TD: Tensor, offsets: Tensor, seconds: Tensor) -> Tensor:
        """(B, D): what :meth:`forward` gives the last token of each row. Of the others keys and values are made, and
        nothing else. ``seconds`` (T,): between each event and the moment at which its row is asked."""
        width, normed, ends = x_TD.shape[1], _normed(x_TD), offsets[1:] - 1
        of_last, of_all = self.gate_query_key_value.weight.split(2 * width)
        gate, query = F.silu(F.linear(normed[ends], of_last)).split(width, dim=1)
        key_value = F.silu(F.linear(normed, of_all)).unflatten(1, (2, self.num_heads, -1))  # (T, 2, H, D/H)
        query, tables = query.unflatten(1, (self.num_heads, -1)), (self.by_position, self.by_time)
        read = last_silu_attention(query, key_value, offsets, seconds, *tables, self.max_history)
        return self._gated(x_TD[ends], gate, read)

    def _gated(self, x: Tensor, gate: Tensor, read: Tensor) -> Tensor:
        """Stream and gate (..., D), and what was read (..., H, D/H) -> (..., D)."""
        return x + self.out(self.dropout(gate * _normed(read.flatten(1))))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


class HSTUEncoder(nn.Module):
    """Position embedding and blocks over event vectors that the model above has made."""

    def __init__(self, width: int, num_layers: int, num_heads: int, max_history: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Embedding(max_history, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(HSTUBlock(width, num_heads, max_history, dropout) for _ in range(num_layers))
        self.scale = width**0.5

    def forward(self, events_TD: Tensor, batch: Batch) -> Tensor:
        """(T, D) event vectors of the batch -> (T, D): at each place what the history up to it says."""
        pairs = Pairs.of(batch.events.offsets, *moments(batch, TIMELESS if self.training else 0.0))
        x_TD = self._placed(events_TD, pairs)
        for block in self.blocks:
            x_TD = block(x_TD, pairs)
        return x_TD

    def last(self, events_TD: Tensor, batch: Batch) -> Tensor:
        """(B, D): what :meth:`forward` gives the last event of each history. The last block is paid for these alone."""
        times, asked = moments(batch, TIMELESS if self.training else 0.0)
        offsets, blocks = batch.events.offsets, cast(list[HSTUBlock], list(self.blocks))
        pairs = Pairs.of(offsets, times, asked)
        x_TD = self._placed(events_TD, pairs)
        for block in blocks[:-1]:
            x_TD = block(x_TD, pairs)
        return blocks[-1].last(x_TD, offsets, asked[offsets[1:] - 1][batch.events.row_ids] - times)

    def _placed(self, events_TD: Tensor, pairs: Pairs) -> Tensor:
        placed: Tensor = self.dropout(self.scale * events_TD + self.position(pairs.layout.positions))
        return placed

    def flops(self, lengths: Tensor) -> float:
        """Of one forward pass over histories of these lengths (B,)."""
        attention = len(self.blocks) * attention_flops(causal_pairs(lengths), self.position.embedding_dim)
        return matmul_flops(self.blocks, int(lengths.sum())) + attention


def moments(batch: Batch, timeless: float = 0.0) -> tuple[Tensor, Tensor]:
    """(T,) seconds of every event, and (T,) of the moment at which what follows it is asked for: the time of the next
    event, after the last event that of the request, and where that is unknown its own.

    A history without times is read as if all happened at once. A share ``timeless`` of the histories is read so in
    training, so that one that comes without times is no surprise.
    """
    events = batch.events
    if events.times is None:
        nothing = torch.zeros_like(events.items)
        return nothing, nothing
    times, rows = events.times, events.row_ids
    ends = times if batch.requests.as_of is None else batch.requests.as_of[rows]
    goes_on = rows[1:] == rows[:-1]
    asked = torch.cat((torch.where(goes_on, times[1:], ends[:-1]), ends[-1:]))
    if timeless:
        hidden = (torch.rand(batch.num_histories, device=times.device) < timeless)[rows]
        times, asked = times.masked_fill(hidden, 0), asked.masked_fill(hidden, 0)
    return times, asked
