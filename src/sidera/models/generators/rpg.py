"""RPG: all codes of the next item from one state, at once (Hou et al. 2025, arXiv 2506.05781).

    sidera run recipes/any/rpg.toml --data data/mine --out runs/any-rpg

An item has m *unordered* codes, each of a small book (a product quantizer is meant). A causal encoder reads the mean of
the code vectors of every event; m heads turn one state into m vectors, and a code's score is the cosine of a head's
vector with the code's. The codes do not read each other, so log p(item) is a sum over them: the whole catalogue is
scored exactly by one gather (``decode.parallel``), or a part of it by a walk over a graph of items with like codes.

The loss is the paper's mean cross-entropy over the codes and, with ``item_weight``, a softmax over sampled items of the
same scores: digits that are each likely are not yet an item that exists (docs/understand/models/rpg.md).

Shape legend: T events of the batch · B histories · U distinct items · W beams · L levels (m) · K codes of a level ·
D width · M negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.batches import PackedSequences
from sidera.nn.counters import TRAINING
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.sampled_softmax import uniform_softmax
from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import layout_of
from sidera.ops.jagged import with_copies
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class CodeScores:
    """Log-probabilities of all codes of every level, side by side: what one state says of the next item."""

    log_probs: Tensor  # (B, sum of K)
    level_sizes: tuple[int, ...]

    @property
    def num_histories(self) -> int:
        return self.log_probs.shape[0]

    @property
    def nbytes(self) -> int:
        return self.log_probs.nbytes

    @property
    def length(self) -> int:
        return 1

    def levels(self) -> tuple[Tensor, ...]:
        """L of (B, K)"""
        return self.log_probs.split(self.level_sizes, dim=1)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.log_probs,)

    def padded_to(self, num_histories: int, length: int) -> CodeScores:
        """See :class:`sidera.decode.graph.Paddable`."""
        return CodeScores(with_copies(self.log_probs, num_histories - self.num_histories), self.level_sizes)


class Heads(nn.Module):
    """m residual heads, each an MLP of its own, over the same states."""

    def __init__(self, num_levels: int, width: int) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(num_levels, width, width) * 0.02) for _ in range(2))

    def forward(self, states_TD: Tensor) -> Tensor:
        """(T, D) -> (L, T, D)"""
        return states_TD + torch.matmul(F.gelu(torch.matmul(states_TD, self.up)), self.down)


class Rpg(nn.Module):
    """Scores all codes of the next item at once."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history
        width: int = 64  # dims of a token and of a code
        num_layers: int = 2  # blocks after each other
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 2  # feed-forward width / width
        dropout: float = 0.4  # share of units dropped
        temperature: float = 0.05  # of the cosines at the start; learned from there on, one a level (paper: 0.03)
        item_input: Literal["codes", "both"] = "both"  # how an event's item is read; codes: as the paper does
        item_weight: float = 1.0  # of the softmax over sampled items beside the codes'; 0: the paper's loss
        num_negatives: int = 512  # items of that softmax, shared by a batch; all where there are no more

        def __post_init__(self) -> None:
            check_counts(
                "[model]", self, "max_history", "width", "num_layers", "num_heads", "ff_multiple", "num_negatives",
            )  # fmt: skip
            check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
            check_value("[model]", "temperature", self.temperature, 0.001 <= self.temperature <= 10, "0.001 to 10")
            check_value("[model]", "item_weight", self.item_weight, 0 <= self.item_weight <= 100, "0 to 100")
            divides = self.width % self.num_heads == 0
            check_value("[model]", "num_heads", self.num_heads, divides, f"a divisor of width ({self.width})")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "generator"
    feed = PackedSequences
    ways = ("exact", "graph", "beam")  # how it is searched, the usual one first
    scores_late_codes = True  # books are small: no code of a late item is new

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
        self.code = nn.Embedding(sum(self.level_sizes), config.width)  # of all levels, one after another
        nn.init.normal_(self.code.weight, std=0.02)
        self.item = ItemEmbedding(len(catalog.item_keys), config.width) if config.item_input == "both" else None
        if self.item is not None:
            nn.init.normal_(self.item.weight, std=0.02)
        self.encoder = CausalEncoder(
            config.width, config.num_layers, config.num_heads, config.ff_multiple * config.width, config.max_history,
            config.dropout,
        )  # fmt: skip
        self.heads = Heads(self.num_levels, config.width)
        self.log_scale = nn.Parameter(torch.full((self.num_levels,), -math.log(config.temperature)))
        self.item_scale = nn.Parameter(torch.tensor(-0.5 * math.log(self.num_levels)))
        starts = torch.tensor((0, *self.level_sizes[:-1])).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)  # (L,) first row of each level in ``code``
        self.starts: Tensor
        codes = torch.from_numpy(np.asarray(catalog.codes, dtype=np.int64))  # (N, L): negatives are drawn from them
        self.register_buffer("codes", codes, persistent=False)
        self.codes: Tensor

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    # -- reading and training --------------------------------------------------------------------------------------

    def states(self, batch: Batch) -> Tensor:
        """(T, D): at each event what the history up to it says."""
        return self.encoder(self._events(batch), layout_of(batch.events.offsets))

    def _events(self, batch: Batch) -> Tensor:
        items = self.code(batch.items.codes + self.starts).sum(1) * self.num_levels**-0.5  # (U, D)
        if self.item is not None:
            items = items + self.item(batch.items.ids)
        return F.embedding(batch.events.items, items)

    def written(self, states_TD: Tensor) -> Tensor:
        """(L, T, D): what each head looks for; its length is the level's 1 / temperature."""
        return F.normalize(self.heads(states_TD), dim=-1) * self.log_scale.exp()[:, None, None]

    def vectors(self) -> Tensor:
        """(sum of K, D) unit vectors of the codes."""
        return F.normalize(self.code.weight, dim=-1)

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of the mean of -log p(code) over the codes, and of the item loss."""
        targets = batch.targets_of("event").items
        target_codes = batch.items.codes[targets]  # (T, L)
        written, vectors = self.written(self.states(batch)), self.vectors()
        levels = zip(written, vectors.split(self.level_sizes), target_codes.unbind(1), strict=True)
        per_level = torch.stack([F.cross_entropy(head @ codes.T, own, reduction="sum") for head, codes, own in levels])
        count = targets.numel()
        parts = {f"level_{level}": mean for level, mean in enumerate((per_level.detach() / max(1, count)).tolist())}
        total = per_level.mean()
        if self.config.item_weight:
            by_item = self._item_loss(written, vectors, target_codes, batch.target_ids_of("event"))
            parts["item"] = float(by_item.detach()) / max(1, count)
            total = total + self.config.item_weight * by_item
        return Loss(total, count, parts)

    def _item_loss(self, written: Tensor, vectors: Tensor, target_codes: Tensor, target_ids: Tensor) -> Tensor:
        """Sum over targets of -log softmax of an item's score, the sum of its codes' scores, among sampled items."""
        num_items = len(self.codes)
        num_negatives = min(num_items, self.config.num_negatives)
        negative_ids = torch.arange(num_items, device=target_ids.device)  # (M,)
        if num_negatives < num_items:
            negative_ids = torch.randint(num_items, (num_negatives,), device=target_ids.device)
        looks = written.transpose(0, 1).flatten(1) * self.item_scale.exp()  # (T, L*D)
        targets = F.embedding(target_codes + self.starts, vectors).flatten(1)  # (T, L*D)
        negatives = F.embedding(self.codes[negative_ids] + self.starts, vectors).flatten(1)  # (M, L*D)
        return uniform_softmax(looks, targets, negatives, target_ids, negative_ids, num_items)

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        events, width = batch.events.num_values, self.config.width
        forward = self.encoder.flops(batch.lengths) + 2.0 * events * width * sum(self.level_sizes)
        forward += 4.0 * events * self.num_levels * width**2
        if self.config.item_weight:
            forward += 2.0 * events * min(len(self.codes), self.config.num_negatives) * self.num_levels * width
        return TRAINING * forward

    # -- answering -------------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> CodeScores:
        """The scores of all codes: nothing is left to compute but sums."""
        offsets = batch.events.offsets
        last = self.encoder.last(self._events(batch), layout_of(offsets), offsets[1:] - 1)  # (B, D)
        levels = zip(self.written(last), self.vectors().split(self.level_sizes), strict=True)
        found = [(head @ codes.T).log_softmax(-1) for head, codes in levels]
        return CodeScores(torch.cat(found, dim=1), self.level_sizes)

    def code_log_probs(self, context: CodeScores) -> tuple[Tensor, ...]:
        return context.levels()

    def code_vectors(self) -> tuple[Tensor, ...]:
        return self.vectors().split(self.level_sizes)

    def new_cache(self, context: CodeScores, width: int) -> None:
        return None

    def step(
        self, context: CodeScores, cache: None, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K): the same for every beam."""
        width = 1 if codes is None else codes.shape[1]
        logits = context.levels()[level][:, None].expand(-1, width, -1)
        return StepOutput(logits, logits.new_zeros(logits.shape[:2]))

    def code_logits(self, context: CodeScores, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K) log-probabilities, with gradient."""
        return [scores[:, None].expand(-1, sids.shape[1], -1) for scores in context.levels()]
