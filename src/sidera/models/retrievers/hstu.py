"""HSTU as a retriever (Zhai et al. 2024, arXiv 2402.17152): gated silu attention that knows positions and times.

    sidera run recipes/any/hstu.toml --data data/mine --out runs/any-hstu

Blocks: ``nn/hstu.py``. The score of an item is the cosine of its vector with the last state, over ``temperature``. The
loss is a softmax over uniform negatives, shared by a batch with the log(N/M) correction or drawn for each target, or
over all items. What is published and what differs: docs/understand/models/hstu.md.

Shape legend: T tokens · B histories · N items · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.batches import PackedSequences
from sidera.nn.counters import TRAINING
from sidera.nn.hstu import HSTUEncoder
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.sampled_softmax import own_softmax, sampled_softmax
from sidera.roles import Loss


class HSTU(nn.Module):
    """A state after every event, compared with every item by cosine."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history; attention weights are divided by it
        width: int = 64  # dims of a token
        num_layers: int = 2  # blocks after each other
        num_heads: int = 1  # heads of attention; they divide width
        dropout: float = 0.2  # share of units dropped
        loss: Literal["sampled", "own", "full"] = "sampled"  # sampled, own: softmax over num_negatives; full: all items
        num_negatives: int = 128  # shared by a batch ("sampled"), or drawn for each target ("own")
        temperature: float = 0.05  # scores are cosines divided by it
        stochastic_length: float = 0.0
        # alpha: trained on random parts of about max_history^(alpha/2) events of longer histories; 0: on all events

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "width", "num_layers", "num_heads", "num_negatives")
            check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
            check_value("[model]", "temperature", self.temperature, 0 < self.temperature <= 1, "0 < x <= 1")
            alpha = self.stochastic_length
            check_value("[model]", "stochastic_length", alpha, alpha == 0 or 1 <= alpha <= 2, "0, or 1 to 2")
            if self.width % self.num_heads:
                raise InputError(f"[model] width = {self.width} is not a multiple of num_heads = {self.num_heads}")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "scorer"
    reads_codes = False

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.feed = partial(PackedSequences, stochastic_length=config.stochastic_length)
        self.item = ItemEmbedding(len(catalog.item_keys), config.width)
        nn.init.trunc_normal_(self.item.weight, std=0.02)
        self.encoder = HSTUEncoder(
            config.width, config.num_layers, config.num_heads, config.max_history, config.dropout
        )
        self._vectors = MadeOfWeights[Tensor]()

    def item_vectors(self) -> Tensor:
        """(N, D) of length 1."""
        if self.training or torch.is_grad_enabled():
            return F.normalize(self.item.weight, dim=1)
        return self._vectors.get((self.item.weight,), lambda: F.normalize(self.item.weight, dim=1))

    def states(self, batch: Batch) -> Tensor:
        """(T, D): at each event what the history up to it says."""
        return self.encoder(self._events(batch), batch)

    def _events(self, batch: Batch) -> Tensor:
        items = self.item(batch.items.ids)  # (U, D)
        return F.embedding(batch.events.items, items)

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, 1, D)"""
        last: Tensor = self.encoder.last(self._events(batch), batch)
        return F.normalize(last, dim=-1)[:, None] / self.config.temperature

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        return self.user_vectors(batch)[:, 0] @ self.item_vectors().T

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of the chosen loss; one target per event."""
        target_ids, config = batch.target_ids_of("event"), self.config
        states_TD = self.states(batch)
        if config.loss == "full":
            logits = F.normalize(states_TD, dim=1) / config.temperature @ self.item_vectors().T  # (T, N)
            total = F.cross_entropy(logits, target_ids, reduction="sum")
        elif config.loss == "own":
            total = own_softmax(states_TD, self.item.weight, target_ids, config.num_negatives, config.temperature)
        else:
            total = sampled_softmax(
                states_TD, self.item.weight, target_ids, config.num_negatives, temperature=config.temperature
            )
        return Loss(total, target_ids.numel())

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        scored = self.item.num_embeddings if self.config.loss == "full" else 1 + self.config.num_negatives
        products = 2.0 * batch.events.num_values * scored * self.config.width
        return TRAINING * (self.encoder.flops(batch.lengths) + products)

    def train(self, mode: bool = True) -> HSTU:
        """Switching modes drops the vectors made for answering."""
        self._vectors.drop()
        super().train(mode)
        return self
