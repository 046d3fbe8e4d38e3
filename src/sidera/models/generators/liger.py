"""LIGER: generative and dense retrieval in one model (Yang et al. 2024, arXiv 2411.18814).

    sidera run recipes/any/liger.toml --data data/mine --out runs/any-liger

A TIGER that also knows what items are. Each of an item's L tokens is the vector of its code plus a vector of the item's
content (:mod:`sidera.nn.item_tower`: codes, features and the sentence vector that the catalogue keeps). Two losses of
equal weight: -log p of the next item's codes, and a softmax over the catalogue of cos(state at the last token of the
history, item) / temperature.

Answering: the beam proposes ``num_proposed`` items, all cold items join them (those that the training never showed,
whenever they came), and the dense score orders the union (:mod:`sidera.decode.hybrid`). With ``num_proposed`` at the
size of the catalogue that is dense retrieval over all items. Where this differs from the paper, and why:
docs/understand/models/liger.md.

Shape legend: T tokens · B histories · N items · M negatives · C candidates · W beams · L levels · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.catalog.kept_vectors import content_features
from sidera.config import check_counts, check_value, later
from sidera.models.generators.tiger import Tiger
from sidera.models.generators.tiger_decode import TigerCache, TigerContext
from sidera.nn.counters import TRAINING, matmul_flops
from sidera.nn.item_tower import ItemTower, unit
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.sampled_softmax import uniform_softmax
from sidera.nn.t5 import PackedRows, own_casts
from sidera.roles import Loss

NO_ITEM = -1  # place of a token that stands for a user


@dataclass(frozen=True)
class LigerContext(TigerContext):
    """The encoder's states, and the vector of each history that is compared with items."""

    users: Tensor | None = None  # (B, D) of length 1


class Liger(Tiger):
    """Writes codes as TIGER does and orders what it wrote, and what is cold, by the cosine of content."""

    @dataclass(frozen=True)
    class Config(Tiger.Config):
        num_proposed: int = 20  # K: items that the beam proposes; the size of the catalogue: dense retrieval
        dense_weight: float = 1.0  # of the dense loss; the codes' has 1
        temperature: float = 0.07  # cosines are divided by it
        num_negatives: int = 0  # uniform ones of a batch in the dense softmax; 0: all items
        content: Literal["all", "vectors"] = later("all")
        # what is read of an item: codes, features and, where the catalogue keeps them, vectors; or vectors alone
        id_dropout: float = 1.0  # share of items whose own vector is dropped in training; 1: content alone

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts("[model]", self, "num_proposed")
            check_counts("[model]", self, "num_negatives", low=0)
            check_value("[model]", "dense_weight", self.dense_weight, 0 <= self.dense_weight <= 100, "0 to 100")
            check_value("[model]", "temperature", self.temperature, 0.001 <= self.temperature <= 10, "0.001 to 10")
            check_value("[model]", "id_dropout", self.id_dropout, 0 <= self.id_dropout <= 1, "0 to 1")

    config: Config
    joins_cold = True  # see roles.HybridGenerator

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.num_proposed = config.num_proposed
        alone = config.content == "vectors"
        features = content_features(catalog, vectors_alone=alone)
        self.tower = ItemTower(catalog, config.width, features, config.id_dropout, codes=not alone)
        self.content = nn.Linear(config.width, config.width)  # into the encoder
        self.item_out, self.user_out = (nn.Linear(config.width, config.width) for _ in range(2))  # to be compared
        self._vectors = MadeOfWeights[Tensor]()

    # -- reading -------------------------------------------------------------------------------------------------

    def event_tokens(self, batch: Batch) -> Tensor:
        """(T, 2) token, and place of its item in the batch."""
        places = batch.events.items.repeat_interleave(self.num_levels)
        return torch.stack((super().event_tokens(batch), places), dim=1)

    def user_tokens(self, batch: Batch) -> Tensor | None:
        """(B, 2)"""
        tokens = super().user_tokens(batch)
        return None if tokens is None else torch.stack((tokens, torch.full_like(tokens, NO_ITEM)), dim=1)

    def inputs(self, rows: PackedRows, batch: Batch, table: Tensor) -> Tensor:
        """(T, D): the code's vector and what is known of its item."""
        content = F.pad(self.content(self.tower(batch.items.ids)), (0, 0, 0, 1))  # (U+1, D), the last is no item's
        tokens, places = rows.tokens.unbind(1)
        return F.embedding(tokens, table) + F.embedding(places % len(content), content)

    def _users(self, states: Tensor, rows: PackedRows) -> Tensor:
        """States (T, D) of the encoder -> (B, D) of length 1, in the order of the batch."""
        last = states[rows.offsets[1:] - 1].float()  # (B, D)
        vectors = unit(self.user_out(last))
        return torch.empty_like(vectors).index_copy(0, rows.order, vectors)

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """TIGER's sum over histories, and the dense loss; ``parts`` has each level's mean and ``dense``."""
        target_ids = batch.target_ids_of("history")
        with own_casts(self.embedding.weight) as dtype:
            rows = self.packed_rows(batch)
            memory = self.encoder(self.inputs(rows, batch, self.embedding.weight), rows.layout, dtype)
            codes = self.written_loss(batch, rows, memory, dtype)
            dense = self._dense_loss(self._users(memory, rows), target_ids)
        parts = {**codes.parts, "dense": float(dense.detach()) / max(1, codes.count)}
        return Loss(codes.total + self.config.dense_weight * dense, codes.count, parts)

    def _dense_loss(self, users: Tensor, target_ids: Tensor) -> Tensor:
        """() users (B, D), targets (B,)"""
        users, number = users / self.config.temperature, self.config.num_negatives
        if not number:
            logits = users @ self._compared(None).T  # (B, N)
            return F.cross_entropy(logits, target_ids, reduction="sum")
        num_items = self.tower.items.num_items
        negative_ids = torch.randint(num_items, (number,), device=target_ids.device)
        vectors = self._compared(torch.cat((target_ids, negative_ids)))
        positives, negatives = vectors.split([len(target_ids), number])
        return uniform_softmax(users, positives, negatives, target_ids, negative_ids, num_items)

    def _compared(self, ids: Tensor | None) -> Tensor:
        """(n, D) of length 1 of these items; None: of all."""
        return unit(self.item_out(self.tower(ids)))

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        number, histories = self.config.num_negatives, batch.num_histories
        compared = number + 1 if number else self.tower.items.num_items
        towers = histories + number if number else compared
        forward = matmul_flops(self.tower, towers + batch.items.num_items) + matmul_flops(self.item_out, towers)
        forward += matmul_flops(self.content, batch.items.num_items) + matmul_flops(self.user_out, histories)
        return super().flops_per_batch(batch) + TRAINING * (forward + 2.0 * histories * compared * self.config.width)

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> LigerContext:
        """Encode every history once, and compare vectors."""
        rows = self.packed_rows(batch)
        base = self.encoded(rows, batch)
        return LigerContext(base.states, base.layout, base.order, base.weights, self._users(base.states, rows))

    def item_vectors(self) -> Tensor:
        """(N, D) of length 1."""
        if self.training or torch.is_grad_enabled():
            return self._compared(None)
        return self._vectors.get((*self.tower.parameters(), *self.item_out.parameters()), lambda: self._compared(None))

    def beam_vectors(self, context: LigerContext, cache: TigerCache, codes: Tensor, parents: Tensor) -> Tensor:
        """(B, W, D): the history's own, whatever a beam wrote."""
        return self.given_vectors(context, codes)

    def given_vectors(self, context: LigerContext, sids: Tensor) -> Tensor:
        """(B, G, ...) semantic IDs -> (B, G, D)"""
        assert context.users is not None
        return context.users[:, None].expand(-1, sids.shape[1], -1)

    def fused(self, log_probs: Tensor, cosines: Tensor) -> Tensor:
        """(B, C) twice -> (B, C): the dense score alone orders."""
        return cosines / self.config.temperature

    def train(self, mode: bool = True) -> Liger:
        """Switching modes drops what was made for answering."""
        self._vectors.drop()
        super().train(mode)
        return self
