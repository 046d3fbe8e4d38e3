"""Pairs of items that should lie near each other, mined from training events (OneRec technical report, section 2.1).

* user-to-item: the item of each event, and among the user's ``recent`` items before it the one most similar by Swing;
* item-to-item: each item, and its ``neighbours`` nearest by Swing.

``PairBatches`` draws them for the training loop: anchors are histories of one event, their partners the targets.

Shape legend: P pairs · N items · E events · k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidera import config as recipes
from sidera.batch import Batch, Reads
from sidera.catalog.config import AlignConfig
from sidera.catalog.swing import Neighbours, events_for_swing, swing
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading, Wanted
from sidera.data.split import Split

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    user_to_item: tuple[Ids, Ids]  # (P,), (P,): the target, the recent item it is nearest to
    item_to_item: tuple[Ids, Ids]  # (P,), (P,)
    neighbours: Neighbours

    @property
    def num_items(self) -> int:
        return len(self.neighbours.item_ids)

    def partners(self, count: int) -> torch.Tensor:
        """(N, count) int64 nearest items, -1 where there are fewer: known positives, which are no negatives."""
        return torch.from_numpy(self.neighbours.item_ids[:, :count].astype(np.int64))


def mine_pairs(dataset: Dataset, split: Split, config: AlignConfig) -> Pairs:
    """InputError when no two users share two items: there is nothing to align with."""
    users, items = events_for_swing(dataset, split)
    found = swing(
        users,
        items,
        dataset.num_items,
        alpha=config.swing_alpha,
        max_items=config.max_user_items,
        max_users=config.max_item_users,
        seed=config.seed,
    )
    rows, places = np.nonzero(found.item_ids[:, : config.neighbours] >= 0)
    if not len(rows):
        raise InputError(
            'vectors = ["aligned"] needs two users who share two training items, and there are none',
            fix='use vectors = ["text"] or ["tfidf"], or more data',
        )
    i2i = rows.astype(np.int64), found.item_ids[rows, places].astype(np.int64)
    return Pairs(user_to_item_pairs(users, items, found, config.recent), i2i, found)


def user_to_item_pairs(users: Ids, items: Ids, found: Neighbours, recent: int) -> tuple[Ids, Ids]:
    """(P,), (P,): events (E,) by user, oldest first; the newest of equally similar items; none at similarity 0."""
    best = np.zeros(len(items), np.float32)
    partner = np.full(len(items), -1, np.int64)
    for lag in range(1, min(recent, len(items) - 1) + 1):
        events = lag + np.flatnonzero((users[lag:] == users[:-lag]) & (items[lag:] != items[:-lag]))
        score = found.similarity(items[events], items[events - lag])
        better = score > best[events]
        best[events[better]] = score[better]
        partner[events[better]] = items[events[better] - lag]
    kept = partner >= 0
    return items[kept], partner[kept]


class PairBatches:
    """An endless epoch of batches; batch n is a function of (seed, n) alone, so a training can be resumed anywhere."""

    def __init__(self, pairs: Pairs, config: AlignConfig, name: str) -> None:
        self.sides = [side for side in (pairs.user_to_item, pairs.item_to_item) if len(side[0])]
        share = config.user_share if len(self.sides) == 2 else 1.0
        self.counts = [round(config.batch_size * share), config.batch_size - round(config.batch_size * share)]
        self.reading = Reading(FeatureSchema(), ItemTable.plain(pairs.num_items), Reads(1))
        self.config, self.digest = config, recipes.digest(["pairs", name, config])

    def num_batches(self, epoch: int) -> int:
        return self.config.steps

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        for number in range(start, self.config.steps):
            rng = np.random.default_rng((self.config.seed, epoch, number, rank))
            anchors, partners = [], []
            for (left, right), count in zip(self.sides, self.counts, strict=False):
                drawn = rng.integers(0, len(left), count)
                anchors.append(left[drawn])
                partners.append(right[drawn])
            item_ids = np.concatenate(anchors)
            count = self.config.batch_size * world_size
            wanted = Wanted("history", np.concatenate(partners))
            yield self.reading.batch(item_ids, np.arange(len(item_ids) + 1), wanted=wanted, global_count=count)
