"""Transitions: which item came how often within a few steps behind which, counted from the training sequences.

    score(c) = sum over events j of the history, 0 = newest:  fading^j log(1 + count(item_j, c) / popularity(c)^norm)
    count(a, c) = sum over the pairs of the log with c behind a by s <= window steps:  step_decay^(s - 1)

``popularity(c)`` is 1 for the mean item. These are sequential rules (Ludewig
and Jannach, arXiv 1803.09587, 3.1) with a decay by steps and a norm by popularity. No weight is learned and a fit takes
seconds. On sparse logs most published Transformers stay below them, so they stand beside every run.

``choose``: ``norm`` and ``fading`` are taken from a grid by NDCG@10 on a sample of the validation rows, with the
history's own items ranked too. Otherwise they are what the recipe says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.config import View
from sidera.data.split import train_sequences
from sidera.models.retrievers.pairs import PairVotes, counted_pairs
from sidera.models.retrievers.validation import validation_ndcg

NORMS = (0.0, 0.3)
FADINGS = (0.35, 0.5, 0.7, 0.85)


class Transitions(PairVotes):
    """Sparse directed counts of item to item."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 20  # events read of a history
        window: int = 10  # steps between two events that still count
        step_decay: float = 0.7  # weight of a step against the one before it
        fading: float = 0.5  # weight of a history item against the one behind it
        norm: float = 0.0  # power of the popularity that counts are divided by; 0: popular items are worth their counts
        neighbours: int = 300  # pairs kept per item
        choose: bool = True  # take norm and fading from a grid, by the validation rows

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "window", "neighbours")
            for name in ("step_decay", "fading"):
                value = getattr(self, name)
                check_value("[model]", name, value, 0 < value <= 1, "above 0, at most 1")
            check_value("[model]", "norm", self.norm, 0 <= self.norm <= 1, "0 to 1")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    chosen: Tensor  # (2,) norm and fading

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(catalog, config.reads, config.neighbours)
        self.config = config
        self.register_buffer("chosen", torch.tensor([config.norm, config.fading]))

    @property
    def fading(self) -> float:
        return float(self.chosen[1])

    def fit_once(self, view: View) -> None:
        """Choose the settings where the recipe leaves them to the data, and count the training sequences."""
        item_ids, offsets = train_sequences(view.dataset, view.split)
        best = (self.config.norm, self.config.fading)
        if self.config.choose and len(view.split.valid):
            trials = {}
            for norm in NORMS:
                self.count(item_ids, offsets, norm, best[1])
                for fading in FADINGS:
                    self.chosen[1] = fading
                    trials[norm, fading] = validation_ndcg(self, view)
            best = max(trials, key=lambda settings: trials[settings])
        self.count(item_ids, offsets, *best)

    def count_again(self, view: View) -> None:
        """Count another training part, with the settings that were chosen."""
        norm, fading = self.chosen.tolist()
        self.count(*train_sequences(view.dataset, view.split), norm, fading)

    def count(self, item_ids: np.ndarray, offsets: np.ndarray, norm: float, fading: float) -> None:
        """Fill the votes from sequences: user u's training events are ``item_ids[offsets[u]:offsets[u+1]]``."""
        self.chosen.copy_(torch.tensor([norm, fading]))
        num_items, config = len(self.votes), self.config
        popularity = np.bincount(item_ids, minlength=num_items) * num_items / max(len(item_ids), 1)
        forward = config.step_decay ** np.arange(config.window)
        pairs = counted_pairs(item_ids, offsets, num_items, forward, forward[:0], itself=True)
        self.keep((left, right, np.log1p(count / popularity[right] ** norm)) for left, right, count in pairs)
