"""OneRec's technical report (Zhou et al., arXiv 2506.13695): four pathways, an encoder, a decoder with experts.

    sidera run recipes/world/onerec.toml --data data/world --out runs/onerec

The user enters by four pathways: *static* (one token from the profile), *short-term* (the newest 20 events),
*positive feedback* (the newest 256 events that were liked) and *lifelong* (what a QFormer reads into a few learned
queries: all that is older than the short-term events, or representatives of the whole history). [h_u; h_s; h_p; h_l]
and their places go through an encoder of full self-attention; every layer of the decoder projects its own keys and
values from the encoder's states and writes [BOS, s1, s2] -> s1, s2, s3. The loss is the sum of -log p over the codes
of a target, and the feed-forwards of the decoder (of the encoder too, if asked) can be mixtures of experts that are
balanced without a loss term.

Any pathway can be switched off: a length of 0, ``static = false``. A user of whom nothing is known still has the static
token, so there is always something to read.

Where this differs from the report: tables and the Dense layers of event features are shared by the pathways and every
event is embedded once, though it may stand in two of them; what tells the pathways apart is the learned place.
Histories longer than ``max_history`` are compressed outside of the model (``store.lifelong``) and read with
``lifelong = "representatives"``: each is embedded as an event, with an item, labels and mean times, and a vector for
how many events it stands for. Its place counts events and not representatives.

Trap: targets of one request share its context, so a batch row is a request and not a target (``RequestRows``).

Shape legend: T events of the batch · B requests · M context tokens of all · S context tokens · Q queries · D width ·
R groups of keys and values, or representatives · E dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Events, Lifelong, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value, later
from sidera.core import InputError
from sidera.models.generators.request_generator import (
    RequestContext,
    RequestGenerator,
    positive_mask,
)
from sidera.nn.code_decoder import CodeDecoder, DecoderSize
from sidera.nn.context_encoder import ContextEncoder
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.nn.event_features import EventFeatures, UserFeatures, padded
from sidera.nn.qformer import QFormer, QFormerLayer
from sidera.nn.target_attention import half_octaves
from sidera.ops.attention import layout_of
from sidera.store.lifelong import LifelongConfig

COUNT_BUCKETS = 32  # half octaves of events that a representative stands for: 65,000


@dataclass(frozen=True)
class Pathway:
    """Tokens of one pathway, jagged: token i is vector ``which[i]`` and belongs to history ``rows[i]``."""

    which: Tensor  # (M_i,) row of the table that users, events and queries form together
    rows: Tensor  # (M_i,)
    positions: Tensor  # (M_i,) of the table of places


class OneRec(RequestGenerator):
    """Writes the codes of the next item from encoded pathways."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 512  # newest events read, by whatever pathway
        static: bool = True  # profile fields in the user's token; without them it is the same for everybody
        short_term: int = 20  # newest events that are read whatever they are; 0: pathway off
        positive_length: int = 256  # newest positive events that are read; 0: pathway off
        num_lifelong_queries: int = 16  # what events older than the short-term ones become (report: 128); 0: off
        lifelong_layers: int = 2  # of the QFormer
        width: int = 128  # dims of a token
        encoder_layers: int = 2  # blocks of the encoder
        decoder_layers: int = 2  # blocks of the decoder
        num_heads: int = 4  # heads of attention; they divide width
        num_kv_groups: int = 4  # heads of keys and values that the decoder reads (GQA)
        ff_width: int = 256  # dims inside a feed-forward
        dropout: float = 0.1  # share of units dropped
        item_input: Literal["id", "sid", "both"] = "both"  # how an event's item is read
        num_experts: int = 0  # 0: dense
        num_active: int = 2  # experts that a token is sent to
        num_shared: int = 0  # experts beside these that every token is sent to
        expert_width: int = 128  # dims inside an expert
        moe_from: int = 0  # first decoder layer with experts
        encoder_experts: bool = False  # experts in the encoder too (report: from 2.6 B parameters on)
        balance_rate: float = 1e-3  # step of the experts' biases
        code_std: float = 0.0  # of the codes' input vectors at the start; 0: width^-0.5, which what is read drowns
        lifelong: Literal["history", "representatives"] = later("history")
        # what the lifelong pathway reads: the newest max_history events (less the short-term ones), or representatives
        # of the whole history, kept up in the store and as of every request in training
        max_representatives: int = later(2000)  # of a history, at most
        lifelong_chunk: int = later(250)  # events that enter their clusters together

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "lifelong_layers", "encoder_layers", "decoder_layers")
            check_counts("[model]", self, "short_term", "positive_length", "num_lifelong_queries", low=0)
            if self.lifelong == "representatives":
                good, allowed = self.num_lifelong_queries >= 1, "1 or more with lifelong = 'representatives'"
                check_value("[model]", "num_lifelong_queries", self.num_lifelong_queries, good, allowed)
                chunk = self.lifelong_chunk  # without chunks a log cannot be read as the store would answer
                check_value("[model]", "lifelong_chunk", chunk, chunk >= 1, "a whole number >= 1")
                self.lifelong_config()
            self.decoder_size()

        def lifelong_config(self) -> LifelongConfig | None:
            """How the histories that the model reads are kept; None: as they are."""
            if self.lifelong == "history":
                return None
            return LifelongConfig(max_representatives=self.max_representatives, chunk=self.lifelong_chunk)

        def decoder_size(self) -> DecoderSize:
            return DecoderSize.of(self, num_layers=self.decoder_layers)

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history, "all", lifelong=self.lifelong_config())

    def __init__(self, config: Config, catalog: Catalog) -> None:
        size = config.decoder_size()
        super().__init__(catalog)
        self.decoder = CodeDecoder(size, self.level_sizes)
        self.config, self.size, self.reads = config, size, config.reads
        self.positive = catalog.schema.positive
        self.events = EventFeatures(catalog, config.width, config.item_input)
        self.user = UserFeatures(catalog, config.width, use_profile=config.static)
        # Places are told by vectors of rms width^-0.5, in which events as they leave their Dense layers would drown
        self.norm_events, self.norm_users = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        lengths = (1, config.short_term, config.positive_length, config.num_lifelong_queries)
        self.first_places = tuple(sum(lengths[:index]) for index in range(4))  # of each pathway in the table
        self.place = nn.Embedding(sum(lengths), config.width)  # e_pos of [h_u; h_s; h_p; h_l]
        nn.init.normal_(self.place.weight, std=config.width**-0.5)
        queries, layers = config.num_lifelong_queries, config.lifelong_layers
        self.lifelong = (
            QFormer(config.width, queries, layers, config.num_heads, ff_width=config.ff_width, dropout=config.dropout)
            if queries
            else None
        )
        self.encoder = ContextEncoder(size, config.encoder_layers, config.encoder_experts)
        self.project = nn.Linear(
            config.width, 2 * config.decoder_layers * config.num_kv_groups * size.head_width, bias=False
        )  # keys and values of every decoder layer
        nn.init.normal_(self.project.weight, std=config.width**-0.5)
        self.dropout = Dropout(config.dropout)
        self.lifelong_config = config.lifelong_config()
        if self.lifelong_config and (features := catalog.schema.owned("event")):
            raise InputError(
                f"lifelong = 'representatives' and {features[0].place}: a representative stands for many events",
                allowed="features of items, users and requests", fix="lifelong = 'history', or leave the feature out",
            )  # fmt: skip
        self.count = nn.Embedding(COUNT_BUCKETS, config.width) if self.lifelong_config else None
        if self.count is not None:
            nn.init.normal_(self.count.weight, std=config.width**-0.5)

    def context(self, batch: Batch) -> RequestContext:
        """Pathways, encoder, and the keys and values of every decoder layer."""
        tokens, offsets = self.pathways(self.of_pathways(batch))
        states = self.encoder(self.dropout(tokens), layout_of(offsets))  # (M, D)
        table, mask = padded(self.project(states), offsets)
        shape = (self.config.decoder_layers, 2, self.config.num_kv_groups, self.size.head_width)
        parts = table.unflatten(-1, shape).permute(2, 3, 0, 4, 1, 5)  # (layers, 2, B, R, S, E)
        return RequestContext([(k, v) for k, v in parts], mask, batch.num_histories)

    def of_pathways(self, batch: Batch) -> Batch:
        """The events that some pathway reads."""
        if self.lifelong is not None and self.count is None:
            return batch
        mask = (batch.events.from_end < self.config.short_term) | self._newest_positives(batch)
        return batch if bool(mask.all()) else batch.keep(mask)

    def pathways(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (M, D) of all pathways with their places added, and the histories' bounds (B+1,)."""
        config, num_rows = self.config, batch.num_histories
        rows, places = batch.events.row_ids, batch.events.from_end
        users = self.norm_users(self.user(batch))  # (B, D)
        events, older, older_bounds = self.embedded(batch, rows, places)  # (T, D), (O, D), (B+1,)
        histories = torch.arange(num_rows, device=rows.device)
        found, vectors = [Pathway(histories, histories, torch.zeros_like(histories))], [users, events]
        if config.short_term:
            chosen = (places < config.short_term).nonzero().squeeze(1)
            found.append(Pathway(num_rows + chosen, rows[chosen], self.first_places[1] + places[chosen]))
        if config.positive_length:
            chosen = self._newest_positives(batch).nonzero().squeeze(1)
            ranks = _counted_from_newest(positive_mask(batch, self.positive), batch.events.offsets, rows)[chosen]
            found.append(Pathway(num_rows + chosen, rows[chosen], self.first_places[2] + ranks))
        if self.lifelong is not None:
            owners = older_bounds.diff().nonzero().squeeze(1)  # (b,) histories that have anything to read
            bounds = F.pad(older_bounds.diff()[owners].cumsum(0), (1, 0))
            queries = self.lifelong(older, offsets=bounds)  # (b, Q, D)
            vectors.append(queries.flatten(0, 1))
            each = config.num_lifelong_queries
            counted = torch.arange(len(owners) * each, device=rows.device)
            positions = self.first_places[3] + counted % each
            found.append(Pathway(num_rows + len(events) + counted, owners.repeat_interleave(each), positions))
        token_rows = torch.cat([pathway.rows for pathway in found])
        order = token_rows.argsort(stable=True)
        which, positions = (
            torch.cat([getattr(pathway, name) for pathway in found])[order] for name in ("which", "positions")
        )
        tokens = torch.cat(vectors).index_select(0, which) + self.place(positions)
        return tokens, F.pad(torch.bincount(token_rows, minlength=num_rows).cumsum(0), (1, 0))

    def embedded(self, batch: Batch, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) events, (O, D) what the lifelong queries read, and its bounds (B+1,)."""
        if self.lifelong is None:
            events = self.norm_events(self.events(batch))
            return events, events[:0], batch.events.offsets.new_zeros(batch.num_histories + 1)
        if self.count is None:
            events = self.norm_events(self.events(batch))
            older = (places >= self.config.short_term).nonzero().squeeze(1)
            counts = torch.bincount(rows[older], minlength=batch.num_histories)
            return events, events.index_select(0, older), F.pad(counts.cumsum(0), (1, 0))
        both, is_event, both_places = with_representatives(batch, places)
        # in one call: an item's part of the first Dense is paid for once
        vectors = self.norm_events(self.events(both, both_places))
        lifelong = representatives(batch)
        sizes = self.count(half_octaves(lifelong.counts - 1, COUNT_BUCKETS))
        return vectors[is_event], vectors[~is_event] + sizes, lifelong.offsets

    def _newest_positives(self, batch: Batch) -> Tensor:
        """(T,) True for the newest ``positive_length`` positive events of each history."""
        liked = positive_mask(batch, self.positive)
        rows = batch.events.row_ids
        return liked & (_counted_from_newest(liked, batch.events.offsets, rows) < self.config.positive_length)

    # -- counting ------------------------------------------------------------------------------------------------

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; padding does not count."""
        if batch.targets is None:
            return 0.0
        config, width = self.config, self.config.width
        batch = self.of_pathways(batch)
        lengths = batch.lengths
        short = lengths.clamp(max=config.short_term)
        liked = F.pad(positive_mask(batch, self.positive).long().cumsum(0), (1, 0))[batch.events.offsets].diff()
        older = lengths - short if self.lifelong is not None else torch.zeros_like(lengths)
        read = batch
        if self.count is not None:
            older = representatives(batch).offsets.diff()
            read = with_representatives(batch, batch.events.from_end)[0]
        queries = config.num_lifelong_queries * (older > 0)
        tokens = 1 + short + liked.clamp(max=config.positive_length) + queries  # (B,)
        forward = self.events.flops(read) + matmul_flops(self.user, batch.num_histories)
        if self.lifelong is not None:
            for layer in cast(list[QFormerLayer], self.lifelong.layers):
                keys = layer.attention.key_value
                forward += matmul_flops(keys, int(older.sum())) - matmul_flops(keys, int(queries.sum()))
                forward += matmul_flops(layer, int(queries.sum()))
                forward += attention_flops(float((queries * older).sum()), width)
        forward += matmul_flops(self.encoder, int(tokens.sum())) + matmul_flops(self.project, int(tokens.sum()))
        forward += config.encoder_layers * attention_flops(float(tokens.square().sum()), width)
        return TRAINING * (forward + self.decoder_flops(batch, tokens))


def representatives(batch: Batch) -> Lifelong:
    """Those of the batch; InputError when it has none."""
    if batch.lifelong is None:
        raise InputError(
            "the batch has no representatives of its histories",
            fix="read the log with a LogRepresentatives, or set [model] lifelong = 'history'",
        )
    return batch.lifelong


def with_representatives(batch: Batch, places: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """One batch of both, each history's representatives before its events: (R+T) events, which of them (R+T,) are the
    batch's own, and how many events came after each (R+T,)."""
    lifelong = representatives(batch)
    events, rows, total = batch.events, lifelong.row_ids, lifelong.num_values
    so_far = F.pad(lifelong.counts.cumsum(0), (1, 0))  # (R+1,)
    after = so_far[lifelong.offsets[1:]][rows] - so_far[1:]  # (R,)
    order = torch.cat((rows, events.row_ids)).argsort(stable=True)

    def merged(theirs: Tensor, ours: Tensor) -> Tensor:
        return torch.cat((theirs, ours))[order]

    both = Events(
        merged(lifelong.items, events.items),
        lifelong.offsets + events.offsets,
        None if events.times is None else merged(lifelong.times, events.times),
        {
            name: merged(values, events.feedback[name])
            for name, values in lifelong.feedback.items()
            if name in events.feedback  # what the model misses it names itself
        },
    )
    return replace(batch, events=both, lifelong=None), order >= total, merged(after, places)


def _counted_from_newest(chosen_mask: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    """(T,) how many chosen events of its history come after an event."""
    counts = chosen_mask.long().cumsum(0)  # (T,) up to and with each event
    return F.pad(counts, (1, 0))[offsets[1:]][rows] - counts
