"""KuaiFormer: several interests out of a compressed history (Kuaishou 2024, arXiv 2411.10057).

    sidera run recipes/any/kuaiformer.toml --data data/mine --out runs/any-kuaiformer

Old events are joined to group tokens (``nn/group_tokens.py``), and learned query tokens stand behind them in a causal
stack: a query reads the history and the queries before it. What comes out of the Q queries are the user's interests,
and the score of an item is its product with the best of them. The loss is a softmax over the targets of the batch,
corrected by the logarithm of their shares of the log, and smoothed; its negatives are those of one micro-batch. What is
published and what is from memory: docs/understand/models/kuaiformer.md.

Shape legend: T events · B histories · Q queries · N items · D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.batches import PrefixRows, trained_mask
from sidera.data.config import View
from sidera.nn.code_decoder import DecoderSize
from sidera.nn.context_encoder import EncoderBlock
from sidera.nn.counters import TRAINING, attention_flops, causal_pairs, matmul_flops
from sidera.nn.dropout import Dropout
from sidera.nn.feature_inputs import FeatureInputs
from sidera.nn.group_tokens import GroupTokens, with_queries
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.sampled_softmax import log_shares
from sidera.ops.attention import layout_of
from sidera.roles import Loss

FEATURE_WIDTH = 16  # of the vector of each feature of an item


class KuaiFormer(nn.Module):
    """Q vectors of a user; an item's score is the best of its products with them."""

    @dataclass(frozen=True)
    class Config:
        recent: int = 48  # newest events, a token each
        middle_groups: int = 5  # groups before them
        middle_size: int = 16  # events of each
        early_groups: int = 2  # groups before these
        early_size: int = 64  # events of each
        num_queries: int = 4  # vectors of a user
        width: int = 64  # dims of a token
        num_layers: int = 2  # causal blocks
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 2  # feed-forward width / width
        dropout: float = 0.2  # share of units dropped
        loss: Literal["in_batch", "full"] = "in_batch"  # softmax over the targets of the batch, or over all items
        smoothing: float = 0.05  # share of the loss that lowers the other targets of the batch one by one

        def __post_init__(self) -> None:
            check_counts("[model]", self, "recent", "middle_size", "early_size", "num_queries", "num_layers")
            check_counts("[model]", self, "middle_groups", "early_groups", low=0)
            check_value("[model]", "smoothing", self.smoothing, 0 <= self.smoothing < 1, "0 <= x < 1")
            self.size()

        def size(self) -> DecoderSize:
            """Of every block; InputError names what does not fit."""
            heads, ff_width = self.num_heads, self.ff_multiple * self.width
            return DecoderSize(self.width, self.num_layers, heads, heads, ff_width, self.dropout)

        @property
        def groups(self) -> tuple[tuple[int, int], ...]:
            """(number, events of each), the newer ones first."""
            return ((self.middle_groups, self.middle_size), (self.early_groups, self.early_size))

        @property
        def reads(self) -> Reads:
            return Reads(self.recent + sum(number * each for number, each in self.groups))

    role = "scorer"
    feed = PrefixRows
    reads_codes = False

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        width, size, num_items = config.width, config.size(), catalog.num_items
        self.item = ItemEmbedding(num_items, width)
        self.of_items = FeatureInputs(catalog.schema.batched, FEATURE_WIDTH)
        inputs = width + FEATURE_WIDTH * self.of_items.num_parts
        self.mix = nn.Sequential(nn.Linear(inputs, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.group = GroupTokens(size, config.recent, config.groups)
        self.slot = nn.Embedding(self.group.num_slots, width)
        self.queries = nn.Parameter(torch.empty(config.num_queries, width))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(size, sparse=False, causal=True) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        self.of_items.start(FEATURE_WIDTH**-0.5)
        nn.init.normal_(self.item.weight, std=width**-0.5)
        nn.init.normal_(self.slot.weight, std=0.02)
        nn.init.normal_(self.queries, std=0.5)  # apart from each other, or all interests start as one
        self.log_share: Tensor  # (N,) of an item among the targets of training; only the loss reads it
        self.register_buffer("log_share", torch.full((num_items,), -math.log(num_items)), persistent=False)

    def fit_once(self, view: View) -> None:
        """Count how often each item is a target."""
        events = view.dataset.item_ids[trained_mask(view.dataset, view.split)]
        self.log_share.copy_(log_shares(events, len(self.log_share)))

    def item_vectors(self) -> Tensor:
        """(N, D)"""
        return self.item.weight

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, Q, D)"""
        items, dims = batch.items, self.config.width**0.5
        parts = [self.item(items.ids) * dims, *self.of_items(items.features, items.num_items)]
        vectors = F.embedding(batch.events.items, self.mix(torch.cat(parts, dim=1)))  # (T, D)
        tokens, slots, offsets = self.group(vectors, batch.events)
        x, offsets, places = with_queries(self.dropout(tokens + self.slot(slots)), offsets, self.queries)
        layout = layout_of(offsets)
        for block in self.blocks:
            x = block(x, layout)
        states: Tensor = self.norm(x[places])
        return states

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        return best_product(self.user_vectors(batch), self.item_vectors())

    def loss(self, batch: Batch) -> Loss:
        """Sum over histories of the loss of their one target."""
        target_ids, alpha = batch.target_ids_of("history"), self.config.smoothing
        users = self.user_vectors(batch)
        if self.config.loss == "full":
            logits = best_product(users, self.item_vectors())
            total = F.cross_entropy(logits, target_ids, reduction="sum", label_smoothing=alpha)
            return Loss(total, target_ids.numel())
        logits = best_product(users, self.item(target_ids)) - self.log_share[target_ids]  # (B, B)
        same = target_ids[:, None] == target_ids  # histories of one target are no negatives of each other
        same.fill_diagonal_(False)
        log_p = logits.masked_fill(same, float("-inf")).log_softmax(1)
        total = -(1 - alpha) * log_p.diagonal().sum()
        if alpha:
            others = log_p.masked_fill(torch.eye(len(log_p), dtype=torch.bool, device=log_p.device), float("-inf"))
            total = total - alpha / len(log_p) * torch.log1p(-others.exp().clamp(max=1 - 1e-6)).sum()
        return Loss(total, target_ids.numel())

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        rows, items, width = batch.num_histories, batch.items.num_items, self.config.width
        lengths = self.group.num_tokens(batch.lengths) + self.config.num_queries
        forward = matmul_flops(self.of_items, items) + matmul_flops(self.mix, items) + self.group.flops(batch.lengths)
        forward += matmul_flops(self.blocks, float(lengths.sum()))
        forward += len(self.blocks) * attention_flops(causal_pairs(lengths), width)
        compared = self.item.num_embeddings if self.config.loss == "full" else rows
        return TRAINING * (forward + 2.0 * rows * self.config.num_queries * compared * width)


def best_product(users: Tensor, items: Tensor) -> Tensor:
    """Users (B, Q, D), items (N, D) -> (B, N): the largest of an item's products with a user's vectors."""
    return (users @ items.T).amax(1)
