"""Masked diffusion over the codes of the next item (MaskGR 2511.23021, LLaDA-Rec 2511.06254, DiffGRM 2510.21805).

    sidera run recipes/any/masked_codes.toml --data data/mine --out runs/any-masked-codes

A causal encoder reads the history into one state per event. The decoder reads the L codes of an item, some of them
masked, in both directions, beside that state, and predicts the masked ones. In training the number of masked codes is
uniform from 1 to L and which ones is random; the cross-entropy of the masked codes is weighted with L / their number,
so the loss is an upper bound of -log p(item), whatever the order (Uria et al. 2014, arXiv 1310.1757).

Two ways to answer: ``unmask`` fills the code that it is surest of first, over the items that exist
(``decode.unmask``); ``beam`` fills from left to right like any generator. What it says of given codes (`code_logits`,
scores of given items) is in the order from left to right.

Shape legend: T events of the batch · B histories · U distinct items · W hypotheses or beams · R rows (items) ·
L levels · K codes of a level · D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.batches import PackedSequences
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import attention, equal_layout, layout_of
from sidera.ops.jagged import with_copies
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class StateContext:
    """The state after each history."""

    states: Tensor  # (B, D)

    @property
    def num_histories(self) -> int:
        return self.states.shape[0]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes

    @property
    def length(self) -> int:
        return 1

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.states,)

    def padded_to(self, num_histories: int, length: int) -> StateContext:
        """See :class:`sidera.decode.graph.Paddable`."""
        return StateContext(with_copies(self.states, num_histories - self.num_histories))


@dataclass
class FilledCache:
    """The codes that each beam has written."""

    codes: Tensor | None = None  # (B, W, L), -1 where open


class FillBlock(nn.Module):
    """Pre-norm attention in both directions and a feed-forward, over the places of one item."""

    def __init__(self, width: int, num_heads: int, ff_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ff_width), nn.Linear(ff_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(R, P, D) -> (R, P, D)"""
        rows, places, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(rows * places, 3, self.num_heads, -1)
        attended = attention(None, qkv, equal_layout(rows, places)).reshape(rows, places, width)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_ff(x)))))


class MaskedCodes(nn.Module):
    """Fills masked codes of the next item."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history
        width: int = 64  # dims of a token
        num_layers: int = 2  # blocks of the encoder
        decoder_layers: int = 2  # blocks over the codes of an item
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 2  # feed-forward width / width
        dropout: float = 0.3  # share of units dropped
        item_input: str = "both"  # how an event's item is read: "codes", or "both" them and the item's own vector

        def __post_init__(self) -> None:
            check_counts(
                "[model]", self, "max_history", "width", "num_layers", "decoder_layers", "num_heads", "ff_multiple"
            )
            check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
            check_value("[model]", "item_input", self.item_input, self.item_input in ("codes", "both"), "codes, both")
            divides = self.width % self.num_heads == 0
            check_value("[model]", "num_heads", self.num_heads, divides, f"a divisor of width ({self.width})")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "generator"
    feed = PackedSequences
    ways = ("beam", "unmask")

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
        width, levels, ff_width = config.width, len(self.level_sizes), config.ff_multiple * config.width
        self.code = nn.Embedding(sum(self.level_sizes), width)  # of all levels, one after another
        self.item = ItemEmbedding(len(catalog.item_keys), width) if config.item_input == "both" else None
        self.encoder = CausalEncoder(
            width, config.num_layers, config.num_heads, ff_width, config.max_history, config.dropout
        )
        self.written = nn.Embedding(sum(self.level_sizes), width)  # codes as the decoder reads them
        self.masked = nn.Parameter(torch.randn(levels, width) * 0.5)  # what stands in the place of a masked code
        self.place = nn.Parameter(torch.randn(levels, width) * 0.5)
        self.state = nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            FillBlock(width, config.num_heads, ff_width, config.dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.ModuleList(nn.Linear(width, size) for size in self.level_sizes)
        for table in (self.code, self.item):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.written.weight, std=0.5)
        starts = torch.tensor((0, *self.level_sizes[:-1])).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)  # (L,) first row of each level in the tables
        self.starts: Tensor

    # -- reading and training --------------------------------------------------------------------------------------

    def states(self, batch: Batch) -> Tensor:
        """(T, D): at each event what the history up to it says."""
        return self.encoder(self._events(batch), layout_of(batch.events.offsets))

    def _events(self, batch: Batch) -> Tensor:
        items = self.code(batch.items.codes + self.starts).sum(1) * len(self.level_sizes) ** -0.5  # (U, D)
        if self.item is not None:
            items = items + self.item(batch.items.ids)
        return F.embedding(batch.events.items, items)

    def fill(self, states: Tensor, codes: Tensor) -> list[Tensor]:
        """States (R, D), codes (R, L), -1 where masked -> per level logits (R, K)."""
        masked = codes < 0
        read = self.written(codes.clamp(min=0) + self.starts)  # (R, L, D)
        read = torch.where(masked[..., None], self.masked, read) + self.place
        x = torch.cat([self.state(states)[:, None], read], dim=1)  # (R, 1 + L, D): the state stands in front
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, 1:] + states[:, None])
        return [head(x[:, level]).float() for level, head in enumerate(self.head)]

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of the bound on -log p(item); outside of training of -log p itself, from left to right."""
        targets = batch.targets_of("event").items
        codes, states = batch.items.codes[targets], self.states(batch)  # (T, L), (T, D)
        if not self.training:
            scores = self._left_to_right(states, codes)
            losses = [F.cross_entropy(part, own, reduction="sum") for part, own in zip(scores, codes.T, strict=True)]
            return Loss(torch.stack(losses).sum(), targets.numel())
        levels = codes.shape[1]
        number = torch.randint(1, levels + 1, (len(codes), 1), device=codes.device)
        order = torch.rand(codes.shape, device=codes.device).argsort(1)
        masked = order < number  # (T, L): ``number`` of each row
        weights = masked * (levels / number)
        logits = self.fill(states, codes.masked_fill(masked, -1))
        losses = [F.cross_entropy(part, own, reduction="none") for part, own in zip(logits, codes.T, strict=True)]
        per_level = (torch.stack(losses, dim=1) * weights).sum(0)
        count = targets.numel()
        means = (per_level.detach() / max(1, count)).tolist()
        return Loss(per_level.sum(), count, {f"level_{level}": mean for level, mean in enumerate(means)})

    def _left_to_right(self, states: Tensor, codes: Tensor) -> list[Tensor]:
        """States (R, D), codes (R, L) -> per level logits (R, K) after the codes before it."""
        at = torch.arange(codes.shape[1], device=codes.device)
        return [self.fill(states, codes.masked_fill(at >= level, -1))[level] for level in range(codes.shape[1])]

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        events, places = batch.events.num_values, len(self.level_sizes) + 1
        forward = self.encoder.flops(batch.lengths) + matmul_flops(self.blocks, events * places)
        forward += len(self.blocks) * attention_flops(events * places**2, self.config.width)
        return TRAINING * (forward + matmul_flops(self.head, events) + matmul_flops(self.state, events))

    # -- answering -------------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> StateContext:
        offsets = batch.events.offsets
        layout = layout_of(offsets, num_tokens=batch.num_events)
        return StateContext(self.encoder.last(self._events(batch), layout, offsets[1:] - 1))

    def fill_log_probs(self, context: StateContext, codes: Tensor) -> list[Tensor]:
        """Codes (B, W, L), -1 where open -> per level log-probabilities (B, W, K)."""
        states = context.states[:, None].expand(-1, codes.shape[1], -1).flatten(0, 1)
        return [part.log_softmax(-1).view(*codes.shape[:2], -1) for part in self.fill(states, codes.flatten(0, 1))]

    def new_cache(self, context: StateContext, width: int) -> FilledCache:
        return FilledCache()

    def step(
        self, context: StateContext, cache: FilledCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """From left to right: (B, W, K)."""
        if codes is None or parents is None:
            shape = (context.num_histories, 1, len(self.level_sizes))
            filled = torch.full(shape, -1, device=context.states.device)
        else:
            assert cache.codes is not None
            filled = cache.codes.gather(1, parents[..., None].expand(-1, -1, len(self.level_sizes)))
            filled[..., level - 1] = codes
        cache.codes = filled
        return StepOutput(self.fill_log_probs(context, filled)[level])

    def code_logits(self, context: StateContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K) from left to right, with gradient."""
        states = context.states[:, None].expand(-1, sids.shape[1], -1).flatten(0, 1)
        return [part.view(*sids.shape[:2], -1) for part in self._left_to_right(states, sids.flatten(0, 1))]
