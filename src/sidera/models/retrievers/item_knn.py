"""Item-kNN: items that follow or accompany the history's items in other users' logs.

Cosine over co-occurrence counts inside a window of the training sequences, forward steps weighted above backward ones,
near steps above far ones; a history's items vote with a weight that halves every ``half_life`` events back. A simple,
strong baseline (Ludewig and Jannach, arXiv 1803.09587, show how often it beats neural models).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.config import View
from sidera.data.split import train_sequences

PAIRS = 4_000_000  # counted at once, about; memory is 50 bytes a pair


class ItemKNN(nn.Module):
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

    role = "scorer"
    reads_codes = False
    reads_late_items = False  # nothing was counted of them
    neighbour_ids: Tensor  # (N, neighbours)
    similarity: Tensor  # (N, neighbours), 0 where there are fewer

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        num_items = len(catalog.item_keys)
        self.register_buffer("neighbour_ids", torch.zeros(num_items, config.neighbours, dtype=torch.int32))
        self.register_buffer("similarity", torch.zeros(num_items, config.neighbours))

    def fit_once(self, view: View) -> None:
        """Count the pairs of the training sequences."""
        self.count(*train_sequences(view.dataset, view.split))

    def count(self, item_ids: np.ndarray, offsets: np.ndarray) -> None:
        """Fill the similarities from sequences: user u's training events are ``item_ids[offsets[u]:offsets[u+1]]``.

        Items are taken a range at a time, so that not all pairs are in memory at once.
        """
        num_items, width = self.similarity.shape
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        events = np.bincount(item_ids, minlength=num_items)
        norm = np.sqrt(events + self.config.shrink)
        self.similarity.zero_()
        device = self.similarity.device
        share = np.cumsum(events) * 2 * self.config.window // PAIRS  # the range that an item falls into
        starts = np.concatenate([[0], np.flatnonzero(np.diff(share)) + 1, [num_items]])
        for first, end in pairwise(starts.tolist()):
            left, right, weight = self._pairs(item_ids, users, first, end)
            similarity = weight / (norm[left] * norm[right])
            order = np.lexsort((-similarity, left))  # best first inside each left item; ties stay in order of right
            left, right, similarity = left[order], right[order], similarity[order]
            rank = np.arange(len(left)) - np.searchsorted(left, left)
            kept = rank < width
            self.neighbour_ids[left[kept], rank[kept]] = torch.from_numpy(right[kept].astype(np.int32)).to(device)
            self.similarity[left[kept], rank[kept]] = torch.from_numpy(similarity[kept]).float().to(device)

    def _pairs(
        self, item_ids: np.ndarray, users: np.ndarray, first: int, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left items in ``first`` to ``end``, right items and their weights together (P,), sorted by left and right.

        A pair's step is kept in the low digits of its key: sorting keys alone is several times faster than sorting
        places, and equal pairs are summed in one order.
        """
        steps, num_items = 2 * self.config.window, self.similarity.shape[0]
        forward = 1.0 / np.arange(1, self.config.window + 1)
        weights, keys = np.concatenate([forward, self.config.backward * forward]), [np.zeros(0, dtype=np.int64)]
        for step in range(1, self.config.window + 1):
            before, after = item_ids[:-step], item_ids[step:]
            counts = (users[step:] == users[:-step]) & (before != after)
            for code, one, other in ((step - 1, before, after), (self.config.window + step - 1, after, before)):
                here = counts & (one >= first) & (one < end)
                keys.append(((one[here] - first) * np.int64(num_items) + other[here]) * steps + code)
        sorted_keys = np.sort(np.concatenate(keys))
        pairs, codes = np.divmod(sorted_keys, steps)
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        total = np.add.reduceat(weights[codes], starts) if len(starts) else np.zeros(0)
        left, right = np.divmod(pairs[starts], num_items)
        return left + first, right, total

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N); 0 for items that no history item was seen with."""
        events, item_ids = batch.events, batch.item_ids
        vote = 0.5 ** (events.from_end / self.config.half_life)  # (T,)
        num_items = self.similarity.shape[0]
        flat_ids = events.row_ids[:, None] * num_items + self.neighbour_ids[item_ids]  # (T, neighbours)
        scores = torch.zeros(batch.num_histories * num_items, device=item_ids.device)
        scores.index_add_(0, flat_ids.flatten(), (vote[:, None] * self.similarity[item_ids]).flatten())
        return scores.view(batch.num_histories, num_items)
