"""Item-kNN: items that follow or accompany the history's items in other users' logs.

Cosine over co-occurrence counts inside a window of the training sequences, forward steps weighted above backward ones,
near steps above far ones; a history's items vote with a weight that halves every ``half_life`` events back. A simple,
strong baseline (Ludewig and Jannach, arXiv 1803.09587, show how often it beats neural models).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidera.batch import Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.config import View
from sidera.data.split import train_sequences
from sidera.models.retrievers.pairs import PairVotes, counted_pairs


class ItemKNN(PairVotes):
    """Sparse item-to-item similarities, counted once from the training sequences."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 20  # events read of a history
        window: int = 10  # steps between two events that still count as together
        backward: float = 0.5  # weight of "came before" against "came after"
        half_life: float = 2.0  # events after which a history item's vote is halved
        neighbours: int = 200  # similarities kept per item
        shrink: float = 1.0  # added to the counts in the cosine's denominator

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "window", "neighbours")
            check_value("[model]", "half_life", self.half_life, 0 < self.half_life < float("inf"), "events > 0")
            for name in ("backward", "shrink"):
                value = getattr(self, name)
                check_value("[model]", name, value, 0 <= value < float("inf"), "a finite number >= 0")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(catalog, config.reads, config.neighbours)
        self.config = config

    @property
    def fading(self) -> float:
        return 0.5 ** (1 / self.config.half_life)

    def fit_once(self, view: View) -> None:
        """Count the pairs of the training sequences."""
        self.count(*train_sequences(view.dataset, view.split))

    def count(self, item_ids: np.ndarray, offsets: np.ndarray) -> None:
        """Fill the similarities from sequences: user u's training events are ``item_ids[offsets[u]:offsets[u+1]]``."""
        config, num_items = self.config, len(self.votes)
        norm = np.sqrt(np.bincount(item_ids, minlength=num_items) + config.shrink)
        forward = 1.0 / np.arange(1, config.window + 1)
        pairs = counted_pairs(item_ids, offsets, num_items, forward, config.backward * forward, itself=False)
        self.keep((left, right, weight / (norm[left] * norm[right])) for left, right, weight in pairs)
