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

Shape legend: T events of the batch · B requests · G targets · L levels · S context tokens · D width · R groups of keys
and values · E dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import Batch, InputError, Loss, StepOutput
from sidera.nn.code_decoder import CodeDecoder, DecoderCache, DecoderSize, KeysValues
from sidera.nn.dropout import Dropout
from sidera.nn.event_features import EventFeatures, UserFeatures, padded
from sidera.nn.moe import balance_experts


@dataclass(frozen=True)
class LazyContext:
    """Keys and values of the requests' contexts, one pair for several layers."""

    pairs: list[KeysValues]  # kv_sharing of (B, R, S, E)
    mask: Tensor  # (B, S) True = a token
    num_histories: int

    can_extend = False  # a new event changes every other one's age and place

    @property
    def nbytes(self) -> int:
        tensors = {id(part): part for pair in self.pairs for part in pair}  # shared keys and values count once
        return sum(part.numel() * part.element_size() for part in tensors.values())


class ContextProcessor(nn.Module):
    """Context tokens -> the keys and values that the decoder's layers read."""

    def __init__(self, size: DecoderSize, num_pairs: int, separate_values: bool) -> None:
        super().__init__()
        self.size, self.num_pairs = size, num_pairs
        self.chunks = (2 if separate_values else 1) * num_pairs
        self.project = nn.Linear(size.width, self.chunks * size.num_kv_groups * size.head_width)
        self.norms = nn.ModuleList(nn.RMSNorm(size.head_width) for _ in range(self.chunks))

    def forward(self, tokens: Tensor) -> list[KeysValues]:
        """(B, S, D) -> num_pairs of ((B, R, S, E), (B, R, S, E))."""
        batch, length, _ = tokens.shape
        shape = (batch, length, self.chunks, self.size.num_kv_groups, self.size.head_width)
        parts = self.project(tokens).view(shape).permute(2, 0, 3, 1, 4)  # (chunks, B, R, S, E)
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        if self.chunks == self.num_pairs:
            return [(part, part) for part in normed]
        return list(zip(normed[::2], normed[1::2], strict=True))


class OneRecV2(nn.Module):
    """Writes the codes of the next item from a context that costs one projection an event."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 256  # newest events read
        short_term: int = 128  # of these so many are read whatever they are, older ones only when positive
        width: int = 128
        num_layers: int = 4
        num_heads: int = 4
        num_kv_groups: int = 4  # heads of keys and values (GQA)
        ff_width: int = 256
        dropout: float = 0.1  # share of units dropped
        kv_sharing: int = 1  # L_kv: pairs of keys and values for all layers
        separate_values: bool = False  # S_kv = 2; False: keys serve as values
        item_input: Literal["id", "sid", "both"] = "both"  # how an event's item is read
        num_experts: int = 0  # 0: dense
        num_active: int = 3
        num_shared: int = 1
        expert_width: int = 128
        moe_from: int = 1  # first layer with experts (paper: the third block)
        balance_rate: float = 1e-3  # step of the experts' biases

        def __post_init__(self) -> None:
            for name in ("max_history", "short_term", "kv_sharing"):
                check_value("[model]", name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
            fits = self.kv_sharing <= self.num_layers
            check_value("[model]", "kv_sharing", self.kv_sharing, fits, f"at most num_layers ({self.num_layers})")
            self.decoder_size()

        def decoder_size(self) -> DecoderSize:
            return DecoderSize(
                width=self.width, num_layers=self.num_layers, num_heads=self.num_heads,
                num_kv_groups=self.num_kv_groups, ff_width=self.ff_width, dropout=self.dropout,
                num_experts=self.num_experts, num_active=self.num_active, num_shared=self.num_shared,
                expert_width=self.expert_width, moe_from=self.moe_from, balance_rate=self.balance_rate,
            )  # fmt: skip

    trains_on = "requests"
    reads_feedback = True

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
        self.positive = catalog.schema.positive
        size = config.decoder_size()
        self.events = EventFeatures(catalog, config.width, config.item_input)
        self.user = UserFeatures(catalog, config.width)
        self.processor = ContextProcessor(size, config.kv_sharing, config.separate_values)
        self.decoder = CodeDecoder(size, self.level_sizes)
        self.dropout = Dropout(config.dropout)
        layers = range(config.num_layers)
        self.pair_of = [layer * config.kv_sharing // config.num_layers for layer in layers]  # l_kv of each layer

    @property
    def item_codes(self) -> Tensor:
        """(N, L)"""
        return self.events.codes

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of -log p(item)."""
        if batch.target_ids is None:
            raise InputError("the batch has no targets", fix="use RequestRows batches")
        if self.training:
            balance_experts(self)
        sids, target_mask = self.targets(batch)  # (B, G, L), (B, G)
        log_p = self.log_probs(self.context(batch), sids)[target_mask]  # (targets, L)
        per_level = -log_p.sum(0)
        count = log_p.shape[0]
        means = (per_level.detach() / count).tolist()
        parts = {f"level_{level}": mean for level, mean in enumerate(means)}
        return Loss(per_level.sum(), count, parts | {"gen_loss": sum(means) / len(means)})

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The codes of each request's targets (B, G, L), and which of them are there (B, G)."""
        assert batch.target_ids is not None
        codes = self.item_codes[batch.target_ids]  # (targets, L)
        if batch.target_offsets is None:
            return codes[:, None], torch.ones(len(codes), 1, dtype=torch.bool, device=codes.device)
        table, mask = padded(codes, batch.target_offsets)
        return table, mask

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> LazyContext:
        """One token for the user and one for each event that is read."""
        batch = self.readable(batch)
        tokens, mask = padded(self.events(batch), batch.offsets, front=self.user(batch))
        return LazyContext(self.processor(self.dropout(tokens)), mask, batch.num_histories)

    def readable(self, batch: Batch) -> Batch:
        """The newest ``short_term`` events of each history, and the positive ones of the rest."""
        return select_events(batch, self.config.short_term, self.config.max_history, self.positive)

    def new_cache(self, context: LazyContext, width: int) -> DecoderCache:
        return DecoderCache(width=1)

    def step(
        self, context: LazyContext, cache: DecoderCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K) logits of the next code."""
        return StepOutput(self.decoder.step(cache, self._kvs(context), context.mask, level, codes, parents))

    def log_probs(self, context: LazyContext, sids: Tensor) -> Tensor:
        """(B, G, L) codes -> (B, G, L) log-probabilities, with gradient."""
        states = self.decoder(self.decoder.embed(sids), self._kvs(context), context.mask)
        return self.decoder.code_log_probs(states, sids)

    def _kvs(self, context: LazyContext) -> list[KeysValues]:
        return [context.pairs[pair] for pair in self.pair_of]


def select_events(batch: Batch, newest: int, limit: int, positive: str) -> Batch:
    """The ``newest`` events of each history whatever they are, and of the older ones, as far as ``limit`` reaches,
    those with the label ``positive`` (all where there is no such label)."""
    lengths = batch.lengths
    if not lengths.numel() or int(lengths.max()) <= newest:
        return batch
    total = batch.item_ids.numel()
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=total)
    place = batch.offsets[1:][rows] - 1 - torch.arange(total, device=rows.device)  # 0 = newest
    kept = place < newest
    liked = batch.feedback[positive] > 0 if positive in batch.feedback else torch.ones_like(kept)
    kept |= liked & (place < limit)
    counts = torch.bincount(rows[kept], minlength=len(lengths))
    return Batch(
        item_ids=batch.item_ids[kept],
        offsets=torch.cat((counts.new_zeros(1), counts.cumsum(0))),
        times=None if batch.times is None else batch.times[kept],
        user_ids=batch.user_ids,
        as_of=batch.as_of,
        feedback={name: values[kept] for name, values in batch.feedback.items()},
        profiles=batch.profiles,
    )
