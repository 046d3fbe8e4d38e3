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

For a single item (``log_probs``, ``step`` up to the last level) this is a Generator like any other: a list's first.

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
from sidera.models.generators.tiger import own_casts
from sidera.nn.code_decoder import DecoderSize, KeysValues
from sidera.nn.counters import TRAINING, attention_flops, causal_pairs, matmul_flops
from sidera.nn.event_features import EventFeatures, UserFeatures, padded
from sidera.nn.list_decoder import ListCache, ListDecoder
from sidera.nn.moe import balance_experts
from sidera.nn.t5 import Encoder, T5Size
from sidera.nn.t5_functions import Group, equal_length_groups
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class ListContext:
    """Keys and values of every decoder layer."""

    pairs: list[KeysValues]  # num_layers of (B, R, S, E)
    mask: Tensor  # (B, S) True = a token
    num_histories: int

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for pair in self.pairs for part in pair)


class OneRecV1(nn.Module):
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
            return DecoderSize(
                width=self.width, num_layers=self.num_layers, num_heads=self.num_heads,
                num_kv_groups=self.num_heads, ff_width=self.ff_width, dropout=self.dropout,
                num_experts=self.num_experts, num_active=self.num_active, num_shared=0,
                expert_width=self.expert_width, moe_from=0, gate="softmax", balance_rate=self.balance_rate,
                code_std=self.code_std,
            )  # fmt: skip

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

    role = "generator"

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.feed = partial(SessionRows, rules=config.session_rules())
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
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

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over the items of all lists of -log p(item | history, items before it)."""
        if self.training:
            balance_experts(self)
        sids, there_mask = self.target_lists(batch)  # (B, 1, m, L), (B, 1, m)
        log_p = self.log_probs_lists(self.context(batch), sids)
        per_level = -log_p[there_mask].sum(0)  # (L,)
        count = int(there_mask.sum())
        parts = {f"level_{level}": value / count for level, value in enumerate(per_level.tolist())}
        return Loss(per_level.sum(), count, parts)

    def target_lists(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The codes of each history's list (B, 1, m, L), and which of its items are there (B, 1, m)."""
        targets = batch.targets_of("list", "request", "history")
        table, mask = padded(batch.items.codes[targets.items], targets.offsets)
        return table[:, None], mask[:, None]

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; padding of lists and histories does not
        count."""
        if batch.targets is None:
            return 0.0
        targets, items = batch.targets.num_values, batch.targets.lengths  # items (B,) of each list
        config, width, levels = self.config, self.config.width, len(self.level_sizes)
        batch = self.liked(batch)
        lengths = batch.lengths * (1 if self.item_tokens is None else levels + 1) + 1  # (B,) encoder tokens
        tokens = int(lengths.sum())
        places = (items * (levels + 1) - 1).clamp(min=0)  # (B,) of each stream: the last code of a list is not read
        forward = matmul_flops(self.user, batch.num_histories)
        forward += 0.0 if self.events is None else self.events.flops(batch)
        forward += matmul_flops(self.encoder, tokens) + matmul_flops(self.key_values, tokens)
        forward += matmul_flops(self.decoder.layers, int(places.sum())) + matmul_flops(self.decoder.heads, targets)
        pairs = float(lengths.square().sum()) + float((places * lengths).sum()) + causal_pairs(places)
        return TRAINING * (forward + config.num_layers * attention_flops(pairs, width))

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> ListContext:
        """Read every history once."""
        batch = self.liked(batch)
        front = self.user(batch)  # (B, D)
        tokens, per_item = self.tokens(batch)  # (items * per_item, D)
        with own_casts(front) as dtype:
            rows = _pack(tokens.float(), batch.events.offsets * per_item, front.float())
            states = self.encoder(rows.tokens, rows.groups, dtype)
        table, mask = padded(states, rows.offsets)  # (B, S, D), rows in packed order
        table, mask = table[rows.places], mask[rows.places]
        pairs = [self._heads(module(table)) for module in self.key_values]
        return ListContext(pairs, mask, batch.num_histories)

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

    def new_cache(self, context: ListContext, width: int) -> ListCache:
        return ListCache(width=1)

    def step(
        self, context: ListContext, cache: ListCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K) logits of the next code; level 0 with codes begins the next item of each list."""
        return StepOutput(self.decoder.step(cache, context.pairs, context.mask, level, codes, parents))

    def log_probs(self, context: ListContext, sids: Tensor) -> Tensor:
        """(B, G, L) codes of single items -> (B, G, L), with gradient."""
        return self.log_probs_lists(context, sids[:, :, None])[:, :, 0]

    def code_logits(self, context: ListContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes of a list's first item -> per level (B, G, K), with gradient."""
        found = self.decoder.first_logits(sids, context.pairs, context.mask)
        return [logits.unflatten(0, sids.shape[:2]) for logits in found]

    def log_probs_lists(self, context: ListContext, sids: Tensor) -> Tensor:
        """(B, G, m, L) codes of lists -> (B, G, m, L), with gradient."""
        return self.decoder.list_log_probs(sids, context.pairs, context.mask)

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


@dataclass(frozen=True)
class _PackedRows:
    """Rows of tokens, longest first, one after another."""

    tokens: Tensor  # (T, D)
    groups: tuple[Group, ...]  # rows of equal length
    offsets: Tensor  # (B+1,) of the packed rows
    places: Tensor  # (B,) the packed row of each history


def _pack(tokens: Tensor, offsets: Tensor, front: Tensor) -> _PackedRows:
    """Jagged tokens (T, D) with one more, ``front`` (B, D), before each row's."""
    lengths = offsets.diff() + 1  # (B,)
    order = lengths.argsort(descending=True, stable=True)
    lengths = lengths[order]
    bounds = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    total = tokens.shape[0] + front.shape[0]
    rows = torch.repeat_interleave(lengths, output_size=total)  # (T',) packed row of each token
    place = torch.arange(total, device=rows.device) - bounds[rows]  # inside its row; 0: front
    source = torch.where(place == 0, tokens.shape[0] + order[rows], offsets[order][rows] + place - 1)
    return _PackedRows(
        torch.cat((tokens, front))[source], equal_length_groups(lengths.tolist()), bounds, order.argsort()
    )
