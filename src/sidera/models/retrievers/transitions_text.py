"""Transitions that lean on titles: an item with few training events borrows counts from items that are called alike.

    v(c) = what transitions give c;  an item of the history with few events votes through its neighbours, too
    z(n) = v(n) + sum over events j of the history with item n:  fading^j
    score(c) = v(c) + weight * few(c) * sum over neighbours n of c:  alike(c, n) z(n)

few(c) falls from 1 for an item without a training event to 0 at ``few`` events, so that items with counts of their own
keep them. An item that came after the training is read and answered by its title alone. ``weight`` is chosen on the
validation rows, behind the settings of the counts; 0 leaves plain transitions.

    sidera run recipes/any/transitions_text.toml --data data/mine --out runs/any-transitions_text

Shape legend: B histories · T events of all · N items · M items that borrow · K neighbours by title.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.config import View
from sidera.models.retrievers.title_words import TitleWords
from sidera.models.retrievers.transitions import Transitions
from sidera.models.retrievers.validation import validation_ndcg
from sidera.nn.item_embedding import ItemRows

WEIGHTS = (0.0, 0.1, 0.3, 1.0)


class TransitionsText(Transitions):
    """Sparse directed counts, and the nearest titles of every item."""

    @dataclass(frozen=True)
    class Config(Transitions.Config):
        few: int = 10  # training events from which on an item borrows nothing
        alike: int = 20  # items, nearest by title, that an item borrows from
        weight: float = 0.3  # of what is borrowed
        choose: bool = True  # take norm, fading and weight from grids, by the validation rows

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts("[model]", self, "few", "alike")
            check_value("[model]", "weight", self.weight, 0 <= self.weight < float("inf"), "0 or more")

    config: Config
    reads_late_items = True
    reads_titles = True
    weight: Tensor  # (1,)
    alike_ids: Tensor  # (N, K) int64, items of the training
    alike_shares: Tensor  # (N, K) float32: few(item) * alike, 0 where there are fewer neighbours

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        number = len(self.votes)
        self.register_buffer("weight", torch.tensor([config.weight]))
        self.register_buffer("alike_ids", torch.zeros(number, config.alike, dtype=torch.int64))
        self.register_buffer("alike_shares", torch.zeros(number, config.alike))
        self.titles = TitleWords(list(catalog.titles))

    @property
    def num_items(self) -> int:
        return len(self.alike_ids)

    def grow(self, items: ItemRows) -> None:
        """Find the neighbours of items that came later among those of the training."""
        found = self.titles.nearest(self.titles.rows(items.titles_from(self.num_items)), self.config.alike)
        ids, shares = (torch.from_numpy(part).to(self.weight.device) for part in found)
        self.alike_ids, self.alike_shares = (
            torch.cat((self.alike_ids, ids)), torch.cat((self.alike_shares, shares)),
        )  # fmt: skip

    def fit_once(self, view: View) -> None:
        """Count, choose the counts' settings, find the neighbours, and choose the weight."""
        self.weight.zero_()
        self.alike_shares.zero_()
        super().fit_once(view)
        self.weight.fill_(self.config.weight)
        if self.config.choose and len(view.split.valid):
            trials = {}
            for weight in WEIGHTS:
                self.weight.fill_(weight)
                trials[weight] = validation_ndcg(self, view)
            self.weight.fill_(max(trials, key=lambda weight: trials[weight]))

    def count_again(self, view: View) -> None:
        """Count another training part: which items have few events may be others then."""
        self.alike_shares.zero_()
        super().count_again(view)

    def count(self, item_ids: np.ndarray, offsets: np.ndarray, norm: float, fading: float) -> None:
        """Also finds the neighbours of every item, once."""
        super().count(item_ids, offsets, norm, fading)
        if not self.alike_shares.any():
            ids, alike = self.titles.nearest(self.titles.items, self.config.alike, itself=True)
            events = np.bincount(item_ids, minlength=len(ids))
            few = np.clip(1 - events / self.config.few, 0, 1)[:, None]
            self.alike_ids.copy_(torch.from_numpy(ids))
            self.alike_shares.copy_(torch.from_numpy((few * alike).astype(np.float32)))

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        events, item_ids = batch.events, batch.item_ids
        known, total = self.votes.shape[0], self.num_items
        votes = self.fading**events.from_end  # (T,)
        rows, ids = events.row_ids, item_ids
        if weight := float(self.weight):
            shares = self.alike_shares[ids]  # (T, K)
            there = shares > 0
            rows = torch.cat((rows, rows[:, None].expand_as(shares)[there]))
            ids = torch.cat((ids, self.alike_ids[item_ids][there]))
            votes = torch.cat((votes, weight * (votes[:, None] * shares)[there]))
        counted = ids < known  # what came later has no counts
        scores = self.voted(rows[counted], ids[counted], votes[counted], batch.num_histories)  # (B, known)
        scores = F.pad(scores, (0, total - known))
        if weight:
            met = scores.index_put((events.row_ids, item_ids), votes[: len(item_ids)], accumulate=True)
            borrows = self.alike_shares.amax(1).nonzero().squeeze(1)  # (M,)
            borrowed = F.embedding_bag(
                self.alike_ids[borrows], met.T.contiguous(), per_sample_weights=self.alike_shares[borrows], mode="sum"
            )  # (M, B)
            scores = scores.index_add(1, borrows, weight * borrowed.T)
        return scores
