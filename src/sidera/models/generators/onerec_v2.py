"""OneRec-V2 (Zhou et al., arXiv 2508.20900): the lazy decoder. Every FLOP goes to the tokens that are written.

    sidera run recipes/world/onerec_v2.toml --data data/world --out runs/onerec-v2

A *context processor* turns each event (item, categories, feedback, time) into one vector of ``kv_sharing`` chunks; a
chunk, normalised, *is* the keys (and, with ``separate_values``, the next one the values) of several decoder layers. No
attention and no feed-forward ever run over the context. The decoder writes [BOS, s1, s2] -> s1, s2, s3 with one
cross-attention, one tiny self-attention and one feed-forward a layer, and each place has its own norm and its own head.

Trained on the newest exposure only: a batch row is a request, its targets are what the user made of it, its context
ends where the request begins (``RequestRows``), so one context serves all targets of a request. The loss is the sum of
-log p over the codes of a target, averaged over targets; the paper's L_Gen divides that by the number of codes
(``gen_loss`` in the log).

Where the paper is silent: the age and place of an event are embedded with it (``nn.event_features``); of the older half
of a long history only positive events enter the context (``short_term``); the static user token comes first.

Loss and steps are shared with the encoder-decoder and stand in ``request_generator.py``.

Shape legend: T events of the batch · B requests · M tokens of all · S context tokens · D width · C chunks · R groups of
keys and values · E dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.models.generators.request_generator import (
    RequestContext,
    RequestGenerator,
)
from sidera.nn.code_decoder import CodeDecoder, DecoderSize, KeysValues
from sidera.nn.counters import TRAINING, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.nn.event_features import EventFeatures, UserFeatures, padded


class ContextProcessor(nn.Module):
    """Context tokens -> the keys and values that the decoder's layers read."""

    def __init__(self, size: DecoderSize, num_pairs: int, separate_values: bool) -> None:
        super().__init__()
        self.size, self.num_pairs = size, num_pairs
        self.chunks = (2 if separate_values else 1) * num_pairs
        self.project = nn.Linear(size.width, self.chunks * size.num_kv_groups * size.head_width)
        self.norms = nn.ModuleList(nn.RMSNorm(size.head_width) for _ in range(self.chunks))

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, D) -> (M, C * R * E): normalised chunks side by side."""
        parts = self.project(tokens).view(-1, self.chunks, self.size.num_kv_groups, self.size.head_width).unbind(1)
        chunks = [norm(part).flatten(1) for norm, part in zip(self.norms, parts, strict=True)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def pairs(self, table: Tensor) -> list[KeysValues]:
        """(B, S, C * R * E) -> num_pairs of ((B, R, S, E), (B, R, S, E))."""
        shape = (self.chunks, self.size.num_kv_groups, self.size.head_width)
        parts = table.unflatten(-1, shape).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        if self.chunks == self.num_pairs:
            return [(part, part) for part in parts]
        return list(zip(parts[::2], parts[1::2], strict=True))


class OneRecV2(RequestGenerator):
    """Writes the codes of the next item from a context that costs one projection an event."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 256  # newest events read
        short_term: int = 128  # of these so many are read whatever they are, older ones only when positive
        width: int = 128  # dims of a token
        num_layers: int = 4  # blocks after each other
        num_heads: int = 4  # heads of attention; they divide width
        num_kv_groups: int = 4  # heads of keys and values (GQA)
        ff_width: int = 256  # dims inside a feed-forward
        dropout: float = 0.1  # share of units dropped
        kv_sharing: int = 1  # L_kv: pairs of keys and values for all layers
        separate_values: bool = False  # S_kv = 2; False: keys serve as values
        item_input: Literal["id", "sid", "both"] = "both"  # how an event's item is read
        num_experts: int = 0  # 0: dense
        num_active: int = 3  # experts that a token is sent to
        num_shared: int = 1  # experts beside these that every token is sent to
        expert_width: int = 128  # dims inside an expert
        moe_from: int = 1  # first layer with experts (paper: the third block)
        balance_rate: float = 1e-3  # step of the experts' biases
        code_std: float = 0.0  # of the codes' input vectors at the start; 0: width^-0.5, which what is read drowns

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "short_term", "kv_sharing")
            fits = self.kv_sharing <= self.num_layers
            check_value("[model]", "kv_sharing", self.kv_sharing, fits, f"at most num_layers ({self.num_layers})")
            self.decoder_size()

        def decoder_size(self) -> DecoderSize:
            return DecoderSize.of(self)

        @property
        def reads(self) -> Reads:
            """The newest ``short_term`` events of each history, and the positive ones of the rest."""
            return Reads(self.max_history, "all", recent=self.short_term)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        size = config.decoder_size()
        super().__init__(catalog)
        self.decoder = CodeDecoder(size, self.level_sizes)
        self.config, self.reads = config, config.reads
        self.events = EventFeatures(catalog, config.width, config.item_input)
        self.user = UserFeatures(catalog, config.width)
        self.processor = ContextProcessor(size, config.kv_sharing, config.separate_values)
        self.dropout = Dropout(config.dropout)
        layers = range(config.num_layers)
        self.pair_of = [layer * config.kv_sharing // config.num_layers for layer in layers]  # l_kv of each layer

    def context(self, batch: Batch) -> RequestContext:
        """One token for the user and one for each event that is read."""
        events = self.processor(self.dropout(self.events(batch)))  # (T, C*R*E)
        users = self.processor(self.dropout(self.user(batch)))  # (B, C*R*E)
        table, mask = padded(events, batch.events.offsets, front=users)
        return RequestContext(self.processor.pairs(table), mask, batch.num_histories)

    def keys_values(self, context: RequestContext) -> list[KeysValues]:
        """Of every layer: its pair, shared with its neighbours."""
        return [context.pairs[pair] for pair in self.pair_of]

    # -- counting ------------------------------------------------------------------------------------------------

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; padding does not count."""
        if batch.targets is None:
            return 0.0
        lengths = batch.lengths
        events = int(lengths.sum())
        forward = self.events.flops(batch) + matmul_flops(self.user, batch.num_histories)
        forward += matmul_flops(self.processor, events + batch.num_histories)
        forward += self.decoder_flops(batch, lengths + 1)
        return TRAINING * forward
