"""OneRec v1 (Deng et al., arXiv 2502.18965): session-wise generation. One list is written, not one item k times.

    sidera run recipes/world/onerec_v1.toml --data data/world --out runs/onerec-v1

A T5 encoder reads what the user liked (views worth recommending again, likes, follows, ...); a decoder whose
feed-forwards are mixtures of experts writes the list's codes in one causal stream [BOS s1 .. sL] x m, so every item is
chosen knowing those before it. Loss: -log p of the codes; the places of BOS and of what was read are not counted.
Trained on good sessions (``SessionRows``); answered by ``decode.session``.

Two readings of the history, ``history_tokens``: "codes", the paper's, L tokens an item and a separator; "item", one
token an item with all that the log knows of the event (``nn.event_features``), which costs a fraction and knows more.
Where the paper is silent: a token of the user stands in front, so that somebody who liked nothing yet can be read; a
vector per place, counted from the newest item, is added, as the decoder's cross-attention knows no order.

For a single item this is a Generator like any other: it is a list's first. Loss and steps stand in
``request_generator.py``.

Shape legend: T events of the batch · B histories · G lists or candidates · m items of a list · L levels · S encoder
tokens · D width · R groups of keys and values · E dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts
from sidera.data.sessions import INTERACTIONS, SessionRows, SessionRules
from sidera.models.generators.request_generator import ListRequestGenerator, RequestContext
from sidera.nn.code_decoder import DecoderSize, KeysValues
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.nn.event_features import EventFeatures, UserFeatures, padded
from sidera.nn.list_decoder import ListDecoder
from sidera.nn.t5 import Encoder, T5Size, own_casts, packed_rows


class OneRecV1(ListRequestGenerator):
    """Writes the codes of a list of items."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 256  # newest events looked at; those liked are read
        history_tokens: Literal["item", "codes"] = "item"  # a token with all features, or L codes and a separator
        item_input: Literal["id", "sid", "both"] = "both"  # how an item token names its item
        width: int = 128  # dims of a token
        num_layers: int = 4  # of the encoder, and of the decoder
        num_heads: int = 4  # heads of attention; they divide width
        ff_width: int = 256  # of the encoder; of the decoder without experts
        dropout: float = 0.1  # share of units dropped
        num_experts: int = 8  # paper: 24; 0: dense
        num_active: int = 2  # experts that a token is sent to
        expert_width: int = 128  # dims inside an expert
        balance_rate: float = 1e-3  # step of the experts' biases
        code_std: float = 0.0  # of the codes' input vectors at the start; 0: width^-0.5, which what is read drowns
        list_beam: int = 8  # lists kept by the search over whole lists (paper: 128 beams)
        session_length: int = 5  # m, items of a list (paper: 5 to 10)
        session_span: Literal["request", "visit"] = "visit"  # whose events make a list; see data.sessions
        session_items: Literal["positive", "shown"] = "positive"  # a list holds what was liked, or all that was shown
        session_gap: int = 1800  # seconds without an event that end a visit
        min_watched: int = 5  # positive events that a list needs to be learned from
        min_watch_time: float = 0.0  # seconds over the list
        min_interactions: int = 0  # likes, follows, ... over the list
        combine: Literal["all", "any"] = "all"  # of these rules

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "list_beam")
            self.decoder_size()
            self.session_rules()

        def decoder_size(self) -> DecoderSize:
            fixed = {"num_kv_groups": self.num_heads, "num_shared": 0, "moe_from": 0, "gate": "softmax"}
            return DecoderSize.of(self, **fixed)

        def encoder_size(self) -> T5Size:
            return T5Size(
                self.width, self.num_layers, self.num_heads, self.width // self.num_heads, self.ff_width, self.dropout
            )

        def session_rules(self) -> SessionRules:
            return SessionRules(
                length=self.session_length, span=self.session_span, gap=self.session_gap, items=self.session_items,
                min_watched=self.min_watched, min_watch_time=self.min_watch_time,
                min_interactions=self.min_interactions, combine=self.combine,
            )  # fmt: skip

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history, "all")

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.feed = partial(SessionRows, rules=config.session_rules())
        self.config, self.reads = config, config.reads
        self.session_length, self.list_beam = config.session_length, config.list_beam
        schema = catalog.schema
        self.liked_by = (schema.positive, *(name for name in INTERACTIONS if name in schema.labels))
        self.item_tokens = ItemCodes(catalog, config.width) if config.history_tokens == "codes" else None
        self.events = (
            EventFeatures(catalog, config.width, config.item_input) if config.history_tokens == "item" else None
        )
        self.user = UserFeatures(catalog, config.width)
        self.places = nn.Embedding(config.max_history, config.width)
        nn.init.normal_(self.places.weight, std=0.02)
        size = config.decoder_size()
        self.encoder = Encoder(config.encoder_size())
        self.key_values = nn.ModuleList(
            nn.Linear(config.width, 2 * config.width, bias=False) for _ in range(config.num_layers)
        )
        for module in self.key_values:
            nn.init.normal_(module.weight, std=config.width**-0.5)  # type: ignore[arg-type]
        self.decoder = ListDecoder(size, self.level_sizes, config.session_length)

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; padding of lists and histories does not
        count."""
        if batch.targets is None:
            return 0.0
        config, levels = self.config, len(self.level_sizes)
        batch = self.liked(batch)
        lengths = batch.lengths * (1 if self.item_tokens is None else levels + 1) + 1  # (B,) encoder tokens
        tokens = int(lengths.sum())
        forward = matmul_flops(self.user, batch.num_histories)
        forward += 0.0 if self.events is None else self.events.flops(batch)
        forward += matmul_flops(self.encoder, tokens) + matmul_flops(self.key_values, tokens)
        forward += config.num_layers * attention_flops(float(lengths.square().sum()), config.width)
        return TRAINING * (forward + self.decoder_flops(batch, lengths))

    def context(self, batch: Batch) -> RequestContext:
        """Read every history once."""
        batch = self.liked(batch)
        front = self.user(batch)  # (B, D)
        tokens, per_item = self.tokens(batch)  # (items * per_item, D)
        with own_casts(front) as dtype:
            rows = packed_rows(tokens.float(), batch.events.offsets * per_item, front.float())
            states = self.encoder(rows.tokens, rows.layout, dtype)
        table, mask = padded(states, rows.offsets)  # (B, S, D), rows in packed order
        own = rows.order.argsort()
        table, mask = table[own], mask[own]
        pairs = [self._heads(module(table)) for module in self.key_values]
        return RequestContext(pairs, mask, batch.num_histories)

    def liked(self, batch: Batch) -> Batch:
        """The events that count as liked: positive, or answered with a like, a follow, a comment, ..."""
        feedback = batch.events.feedback
        columns = [feedback[name] > 0 for name in self.liked_by if name in feedback]
        if not columns or not self.liked_by[0]:
            return batch
        return batch.keep(torch.stack(columns).any(0))

    def tokens(self, batch: Batch) -> tuple[Tensor, int]:
        """One token or several of each item, and how many."""
        vectors = self.places(batch.events.from_end)  # (items, D)
        if self.events is not None:
            return self.events(batch) + vectors, 1
        assert self.item_tokens is not None
        of_items = self.item_tokens(batch.items.codes)  # (U, L+1, D)
        tokens = of_items[batch.events.items] + vectors[:, None]  # (items, L+1, D)
        return tokens.flatten(0, 1), tokens.shape[1]

    def _heads(self, kv: Tensor) -> KeysValues:
        """(B, S, 2 D) -> (B, R, S, E), (B, R, S, E)"""
        batch, length, _ = kv.shape
        heads = self.config.num_heads
        keys, values = kv.view(batch, length, 2, heads, self.config.width // heads).permute(2, 0, 3, 1, 4)
        return keys, values


class ItemCodes(nn.Module):
    """The paper's tokens of an item: its codes and a separator."""

    def __init__(self, catalog: Catalog, width: int) -> None:
        super().__init__()
        starts = torch.tensor([0, *catalog.level_sizes]).cumsum(0)
        self.register_buffer("starts", starts[:-1], persistent=False)  # (L,) first row of each level
        self.starts: Tensor
        self.code = nn.Embedding(int(starts[-1]), width)
        self.separator = nn.Parameter(torch.randn(width) * width**-0.5)
        nn.init.normal_(self.code.weight, std=width**-0.5)

    def forward(self, codes: Tensor) -> Tensor:
        """(U, L) -> (U, L+1, D)"""
        codes = self.code(codes + self.starts)
        return torch.cat((codes, self.separator.expand(len(codes), 1, -1)), dim=1)
