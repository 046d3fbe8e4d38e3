"""A decoder-only generator: one causal stream of codes, the next item's behind those of the history.

    sidera run recipes/any/decoder_only.toml --data data/mine --out runs/any-decoder-only

Every item is its L codes, a token each; the state at a token gives the next one. All events of a history are targets of
one pass, where an encoder-decoder (TIGER) pays a pass for each. COBRA is built on it.

Shape legend: T events of the batch · B histories · I items of the streams, T + B · P tokens of an item · G candidates ·
W beams · L levels · K codes of a level · D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.batches import PackedSequences
from sidera.nn.code_stream import CodeStream, Prefix, StreamCache
from sidera.nn.counters import TRAINING
from sidera.ops.jagged import Jagged
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class Streams:
    """The items of a batch's histories, and behind each history its last target."""

    items: Tensor  # (I,) places in ``Batch.items``
    offsets: Tensor  # (B+1,)
    places: Tensor  # (I,) of each in its history
    follows: Tensor  # (T,) the streams' items that something stands before: what is predicted


class DecoderOnly(nn.Module):
    """Writes the codes of the next item behind the codes of the history."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history
        width: int = 64  # dims of a token
        num_layers: int = 2  # blocks after each other
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 4  # feed-forward width / width
        dropout: float = 0.3  # share of units dropped

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "width", "num_layers", "num_heads", "ff_multiple")
            check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
            if self.width % self.num_heads:
                raise InputError(f"[model] width = {self.width} is not a multiple of num_heads = {self.num_heads}")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "generator"
    feed = PackedSequences
    tokens_behind = 0  # tokens of an item behind its codes

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
        width = config.width
        self.code = nn.ModuleList(nn.Embedding(size, width) for size in self.level_sizes)
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in self.level_sizes)
        self.place = nn.Embedding(config.max_history + 1, width)  # of an item in its history
        self.part = nn.Embedding(self.num_tokens, width)  # of a token in its item
        for table in (*self.code, self.place, self.part):
            nn.init.normal_(table.weight, std=0.02)
        self.stream = CodeStream(width, config.num_layers, config.num_heads, config.ff_multiple * width, config.dropout)

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def num_tokens(self) -> int:
        """P"""
        return self.num_levels + self.tokens_behind

    # -- reading -------------------------------------------------------------------------------------------------

    def _streams(self, batch: Batch, last_targets: Tensor | None) -> Streams:
        """``last_targets`` (B,) places in ``batch.items``; None: the histories alone."""
        rows = Jagged(batch.events.items, batch.events.offsets)
        if last_targets is not None:
            rows = rows.join(Jagged(last_targets, torch.arange(len(last_targets) + 1, device=last_targets.device)))
        index = torch.arange(rows.num_values, device=rows.offsets.device)
        places = index - rows.offsets[:-1].repeat_interleave(rows.lengths, output_size=rows.num_values)
        return Streams(rows.values, rows.offsets, places, (places > 0).nonzero()[:, 0])

    def tokens(self, streams: Streams, table: Tensor) -> Tensor:
        """(I, P, D): what is read of every item. ``table`` (U, P, D): of the batch's distinct items."""
        return table[streams.items] + self.place(streams.places)[:, None] + self.part.weight

    def item_tokens(self, batch: Batch) -> Tensor:
        """(U, P, D) of the batch's distinct items."""
        codes = batch.items.codes
        return torch.stack([table(codes[:, level]) for level, table in enumerate(self.code)], dim=1)

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of -log p(next item); ``parts`` has the mean of each level."""
        states, streams = self.target_states(batch, self.item_tokens(batch))
        return self.code_loss(states, batch.items.codes[streams.items[streams.follows]])

    def code_loss(self, states: list[Tensor], sids: Tensor) -> Loss:
        """States (T, D) in front of each code, codes (T, L)."""
        losses = [
            F.cross_entropy(self._logits(states[level], level).float(), sids[:, level], reduction="sum")
            for level in range(self.num_levels)
        ]
        parts = {f"level_{level}": float(loss.detach()) / max(1, len(sids)) for level, loss in enumerate(losses)}
        return Loss(torch.stack(losses).sum(), len(sids), parts)

    def target_states(self, batch: Batch, table: Tensor) -> tuple[list[Tensor], Streams]:
        """What gives each part of the items that follow: P of (T, D), the state in front of the part."""
        targets = batch.targets_of("event").items
        streams = self._streams(batch, targets[batch.events.offsets[1:] - 1])
        tokens = self.tokens(streams, table)
        states = self.stream(tokens.flatten(0, 1), streams.offsets * self.num_tokens).view(tokens.shape)
        own, before = states[streams.follows], states[streams.follows - 1, -1]
        return [before, *own[:, :-1].unbind(1)], streams

    def _logits(self, states: Tensor, level: int) -> Tensor:
        """(..., D) -> (..., K)"""
        return F.linear(states, self.code[level].weight, self.bias[level])  # type: ignore[arg-type]

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        lengths = (batch.lengths + 1) * self.num_tokens
        heads = 2.0 * batch.events.num_values * sum(self.level_sizes) * self.config.width
        return TRAINING * (self.stream.flops(lengths) + heads)

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> Prefix:
        """Read every history once. Requires at least one event in each."""
        streams = self._streams(batch, None)
        tokens = self.tokens(streams, self.item_tokens(batch))
        return self.stream.read(tokens.flatten(0, 1), streams.offsets * self.num_tokens, batch.lengths)

    def new_cache(self, context: Prefix, width: int) -> StreamCache:
        return StreamCache(context, width, self.num_levels)

    def step(
        self, context: Prefix, cache: StreamCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K) logits of the next code."""
        states = context.last[:, None] if codes is None else self._advance(context, cache, level - 1, codes, parents)
        return StepOutput(self._logits(states, level))

    def _advance(
        self, context: Prefix, cache: StreamCache, level: int, codes: Tensor, parents: Tensor | None
    ) -> Tensor:
        """Beams write ``codes`` (B, W) of ``level`` -> (B, W, D)"""
        cache.begin_position(parents)
        tokens = self.code[level](codes) + self.place(context.lengths)[:, None] + self.part.weight[level]
        return self.stream.advance(context, cache, tokens.flatten(0, 1)).view(tokens.shape)

    def code_logits(self, context: Prefix, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient."""
        states = self._written(context, sids[..., :-1])  # (B, G, L-1, D)
        first = context.last[:, None].expand(-1, sids.shape[1], -1)
        return [self._logits(state, level).float() for level, state in enumerate([first, *states.unbind(2)])]

    def _written(self, context: Prefix, codes: Tensor) -> Tensor:
        """(B, G, l) the first l codes of candidates -> (B, G, l, D)"""
        if not codes.shape[2]:
            return context.last.new_zeros(*codes.shape, self.config.width)
        tokens = torch.stack([self.code[level](codes[..., level]) for level in range(codes.shape[2])], dim=2)
        tokens = tokens + self.place(context.lengths)[:, None, None] + self.part.weight[: codes.shape[2]]
        return self.stream.written(context, tokens)
