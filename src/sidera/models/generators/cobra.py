"""COBRA: sparse codes and dense vectors in turns (Yang et al. 2025, arXiv 2503.02453).

    sidera run recipes/any/cobra.toml --data data/mine --out runs/any-cobra

A history is one causal stream: the codes of an item, then one token with its own vector, then the next item. The codes
of the next item are predicted one by one, and behind its last code its vector: p(codes, vector) = p(codes) p(vector |
codes), all after the history. So a semantic ID may be coarse and shared by many items (``collision = "share"``): the
vector finds the item among them. Two losses of equal weight: -log p of the codes, and a softmax of cosines between the
predicted vector and those of the batch's distinct items, corrected by the chance that an item is among these.

Answering (BeamFusion, :mod:`sidera.decode.hybrid`): the beam writes ``num_proposed`` semantic IDs, the model goes on
for one step behind each and predicts a vector, and all items that bear the ID are compared with it. An item's score is
tau log p(codes) + psi cos. In the paper it is softmax(tau log p) softmax(psi cos): the softmaxes' denominators are the
same for all candidates of a history, so both give one order, and this one does not depend on who else is a candidate.
Where this differs from the paper, and why: docs/understand/models/cobra.md.

Shape legend: T events of the batch · U distinct items · N items · B histories · W beams · G candidates · L levels ·
D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.catalog.kept_vectors import content_features
from sidera.config import check_counts, check_value
from sidera.data.batches import trained_mask
from sidera.data.config import View
from sidera.models.generators.decoder_only import DecoderOnly
from sidera.nn.code_stream import Prefix, StreamCache
from sidera.nn.counters import TRAINING, matmul_flops
from sidera.nn.item_tower import ItemTower, unit
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.sampled_softmax import log_chance, log_shares, softmax_against
from sidera.roles import Loss


class Cobra(DecoderOnly):
    """Writes the codes of the next item, then the vector that tells it from others with the same codes."""

    @dataclass(frozen=True)
    class Config(DecoderOnly.Config):
        num_proposed: int = 50  # M: semantic IDs whose items are compared
        dense_weight: float = 1.0  # of the loss of vectors; the codes' has 1
        temperature: float = 0.0625  # of the cosines in training; the paper's formula has 1
        beam_weight: float = 0.9  # tau: of the beam's log-probability in an item's score
        cosine_weight: float = 16.0  # psi: of the cosine
        log_q: bool = True  # take the popularity of the batch's items out of their scores as negatives
        id_dropout: float = 0.5  # share of items whose own vector is dropped in training; 1: content alone

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts("[model]", self, "num_proposed")
            check_value("[model]", "temperature", self.temperature, 0.001 <= self.temperature <= 10, "0.001 to 10")
            check_value("[model]", "id_dropout", self.id_dropout, 0 <= self.id_dropout <= 1, "0 to 1")
            for name in ("dense_weight", "beam_weight", "cosine_weight"):
                check_value("[model]", name, getattr(self, name), 0 <= getattr(self, name) <= 1000, "0 to 1,000")

    config: Config
    tokens_behind = 1  # the vector
    joins_cold = False  # see roles.HybridGenerator: a cold item bears a semantic ID like any other

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.num_proposed = config.num_proposed
        self.tower = ItemTower(catalog, config.width, content_features(catalog), config.id_dropout)
        self.vector_in = nn.Linear(config.width, config.width)  # into the stream
        self.item_out, self.said_out = (nn.Linear(config.width, config.width) for _ in range(2))  # to be compared
        nn.init.normal_(self.vector_in.weight, std=0.02 * config.width**-0.5)  # as small as codes enter
        nn.init.zeros_(self.vector_in.bias)  # what all items share would drown what tells them apart
        self._vectors = MadeOfWeights[Tensor]()
        self.log_share: Tensor  # (N,) of an item among the training's events; only the loss reads it
        shares = torch.full((catalog.num_items,), -math.log(catalog.num_items))
        self.register_buffer("log_share", shares, persistent=False)

    def fit_once(self, view: View) -> None:
        """Count how often each item comes."""
        events = view.dataset.item_ids[trained_mask(view.dataset, view.split)]
        self.log_share.copy_(log_shares(events, len(self.log_share)))

    def item_tokens(self, batch: Batch) -> Tensor:
        """(U, L + 1, D): the codes, and the vector."""
        return self._with_vectors(batch, self.tower(batch.items.ids))

    def _with_vectors(self, batch: Batch, known: Tensor) -> Tensor:
        """``known`` (U, D): what the tower says of the batch's items."""
        return torch.cat((super().item_tokens(batch), self.vector_in(known)[:, None]), dim=1)

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """The codes' sum over targets and the vectors'; ``parts`` has each level's mean and ``dense``."""
        known = self.tower(batch.items.ids)  # (U, D)
        states, streams = self.target_states(batch, self._with_vectors(batch, known))
        wanted = streams.items[streams.follows]  # (T,) places in the batch's items
        codes = self.code_loss(states, batch.items.codes[wanted])
        dense = self._dense_loss(unit(self.said_out(states[-1])), unit(self.item_out(known)), wanted, batch)
        parts = {**codes.parts, "dense": float(dense.detach()) / max(1, codes.count)}
        return Loss(codes.total + self.config.dense_weight * dense, codes.count, parts)

    def _dense_loss(self, said: Tensor, vectors: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """() said (T, D), vectors (U, D) of the batch's items, of which ``wanted`` (T,) are the targets."""
        scores = (said @ vectors.T).float() / self.config.temperature  # (T, U): every item once
        positive, negative = scores.gather(1, wanted[:, None])[:, 0], scores
        if self.config.log_q:  # the more likely an item is here, the fewer that are not here it stands for
            negative = scores - log_chance(self.log_share[batch.items.ids], len(wanted) + batch.num_histories)
        same = wanted[:, None] == torch.arange(len(vectors), device=wanted.device)
        return softmax_against(positive, negative, same)

    def _compared(self) -> Tensor:
        return unit(self.item_out(self.tower()))

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        items, events = batch.items.num_items, batch.events.num_values
        forward = matmul_flops(self.tower, items) + matmul_flops(self.vector_in, items)
        forward += matmul_flops(self.item_out, items) + matmul_flops(self.said_out, events)
        return super().flops_per_batch(batch) + TRAINING * (forward + 2.0 * events * items * self.config.width)

    # -- answering -----------------------------------------------------------------------------------------------

    def item_vectors(self) -> Tensor:
        """(N, D) of length 1."""
        if self.training or torch.is_grad_enabled():
            return self._compared()
        return self._vectors.get((*self.tower.parameters(), *self.item_out.parameters()), self._compared)

    def beam_vectors(self, context: Prefix, cache: StreamCache, codes: Tensor, parents: Tensor) -> Tensor:
        """(B, W, D) of length 1: predicted behind the last code of every beam."""
        return unit(self.said_out(self._advance(context, cache, self.num_levels - 1, codes, parents)))

    def given_vectors(self, context: Prefix, sids: Tensor) -> Tensor:
        """(B, G, L) semantic IDs -> (B, G, D)"""
        return unit(self.said_out(self._written(context, sids)[:, :, -1]))

    def fused(self, log_probs: Tensor, matches: Tensor) -> Tensor:
        """(B, C) twice -> (B, C)"""
        return self.config.beam_weight * log_probs + self.config.cosine_weight * matches

    def train(self, mode: bool = True) -> Cobra:
        """Switching modes drops the vectors made for answering."""
        self._vectors.drop()
        super().train(mode)
        return self
