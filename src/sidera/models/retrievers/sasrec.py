"""SASRec: self-attentive sequential recommendation (arXiv 1808.09781), with the losses that decide its strength.

``loss = "bce"`` is the paper's (one negative per target); ``"sampled"`` is a softmax over shared uniform negatives with
the log(N/negatives) correction; ``"full"`` is cross-entropy over the whole catalogue. ``output`` says where the output
vectors come from: ``"tied"`` to the input table (ranks items of the history first), ``"untied"`` (an own table), or
``"sum"`` of both. Which of these runs as "SASRec" in a paper changes its recall twofold:
docs/understand/models/sasrec.md.

Shape legend: T tokens · B histories · N items · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.batches import PackedSequences
from sidera.nn.attention_kinds import AttentionKind, Kind
from sidera.nn.counters import TRAINING
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.sampled_softmax import sampled_softmax
from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import layout_of
from sidera.roles import Loss


class SASRec(nn.Module):
    """A causal transformer over items; an item's score is the dot product of its output vector with the last state."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history
        width: int = 64  # dims of a token
        num_layers: int = 2  # blocks after each other
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 2  # feed-forward width / width
        dropout: float = 0.5  # share of units dropped
        loss: Literal["bce", "sampled", "full"] = "sampled"
        # bce: one negative a target; sampled: softmax over num_negatives; full: over all items
        num_negatives: int = 1024  # shared by a batch ("sampled"); "bce" draws one per target
        output: Literal["tied", "untied", "sum"] = "tied"
        # scores come from the item's input vector, from an own one, or from both added
        label_smoothing: float = 0.0  # share of probability spread over the other candidates
        attention: Kind = "full"
        # for long histories: "linear", "mla" (keys and values out of one vector) or "sparse" (chosen blocks)
        latent_width: int = 32  # numbers of that vector ("mla")
        block_size: int = 32  # events of a block and of the window ("sparse")
        num_blocks: int = 4  # blocks read event by event ("sparse")

        def __post_init__(self) -> None:
            check_counts(
                "[model]", self, "max_history", "width", "num_layers", "num_heads", "ff_multiple", "num_negatives",
            )  # fmt: skip
            for name in ("dropout", "label_smoothing"):
                check_value("[model]", name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 <= x < 1")
            if self.width % self.num_heads:
                raise InputError(f"[model] width = {self.width} is not a multiple of num_heads = {self.num_heads}")
            self.kind()

        def kind(self) -> AttentionKind:
            """How a block reads what came before."""
            return AttentionKind(self.attention, self.latent_width, self.block_size, self.num_blocks)

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "scorer"
    feed = PackedSequences
    reads_codes = False

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        num_items = len(catalog.item_keys)
        self.item = ItemEmbedding(num_items, config.width)
        nn.init.normal_(self.item.weight, std=0.02)
        if config.output != "tied":
            self.output = ItemEmbedding(num_items, config.width)
            nn.init.normal_(self.output.weight, std=0.02 if config.output == "untied" else 0.0)
        self.encoder = CausalEncoder(
            config.width,
            config.num_layers,
            config.num_heads,
            config.ff_multiple * config.width,
            config.max_history,
            config.dropout,
            config.kind(),
        )

    def item_vectors(self) -> Tensor:
        """(N, D) output vectors."""
        if self.config.output == "tied":
            return self.item.weight
        if self.config.output == "untied":
            return self.output.weight
        return self.item.weight + self.output.weight

    def states(self, batch: Batch) -> Tensor:
        """(T, D): at each event what the history up to it says."""
        return self.encoder(self._events(batch), layout_of(batch.events.offsets))

    def _events(self, batch: Batch) -> Tensor:
        items = self.item(batch.items.ids)  # (U, D)
        return F.embedding(batch.events.items, items)

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, 1, D)"""
        offsets = batch.events.offsets
        return self.encoder.last(self._events(batch), layout_of(offsets), offsets[1:] - 1)[:, None]

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        return self.user_vectors(batch)[:, 0] @ self.item_vectors().T

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of the chosen loss; one target per event."""
        target_ids = batch.target_ids_of("event")
        # no dropout: on the last state it costs a third of NDCG (docs/evidence/log.md)
        states_TD = self.states(batch)
        vectors_ND = self.item_vectors()
        if self.config.loss == "full":
            logits = states_TD @ vectors_ND.T  # (T, N)
            total = F.cross_entropy(logits, target_ids, reduction="sum", label_smoothing=self.config.label_smoothing)
        elif self.config.loss == "sampled":
            smoothing = self.config.label_smoothing
            total = sampled_softmax(
                states_TD, vectors_ND, target_ids, self.config.num_negatives, label_smoothing=smoothing
            )
        else:
            negative_ids = torch.randint(vectors_ND.shape[0], target_ids.shape, device=target_ids.device)
            positive = (states_TD * F.embedding(target_ids, vectors_ND)).sum(1)
            negative = (states_TD * F.embedding(negative_ids, vectors_ND)).sum(1)
            total = F.softplus(-positive).sum() + F.softplus(negative).sum()
        return Loss(total, target_ids.numel())

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        num_items = self.item.num_embeddings
        scored = {"full": num_items, "sampled": 1 + self.config.num_negatives, "bce": 2}[self.config.loss]
        products = 2.0 * batch.events.num_values * scored * self.config.width
        return TRAINING * (self.encoder.flops(batch.lengths) + products)
