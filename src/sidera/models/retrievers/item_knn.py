"""Item-kNN: items that follow or accompany the history's items in other users' logs.

Cosine over co-occurrence counts inside a window of the training sequences, forward steps weighted above backward ones,
near steps above far ones; a history's items vote with a weight that halves every ``half_life`` events back. A simple,
strong baseline (Ludewig and Jannach, arXiv 1803.09587, show how often it beats neural models).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import Batch, Loss


class ItemKNN(nn.Module):
    """Sparse item-to-item similarities, counted once from the training sequences by :meth:`count`."""

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

    trains_on = "counts"
    reads_codes = False
    neighbour_ids: Tensor  # (N, neighbours)
    similarity: Tensor  # (N, neighbours), 0 where there are fewer

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        num_items = len(catalog.item_keys)
        self.register_buffer("neighbour_ids", torch.zeros(num_items, config.neighbours, dtype=torch.int32))
        self.register_buffer("similarity", torch.zeros(num_items, config.neighbours))

    def count(self, item_ids: np.ndarray, offsets: np.ndarray) -> None:
        """Fill the similarities from sequences: user u's training events are ``item_ids[offsets[u]:offsets[u+1]]``."""
        num_items, width = self.similarity.shape
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        keys, weights = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        for step in range(1, self.config.window + 1):
            together = users[step:] == users[:-step]
            before, after = item_ids[:-step][together], item_ids[step:][together]
            differs = before != after
            before, after = before[differs], after[differs]
            keys += [before * num_items + after, after * num_items + before]
            weights += [np.full(len(before), 1.0 / step), np.full(len(before), self.config.backward / step)]
        pairs, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        together_weight = np.bincount(inverse, weights=np.concatenate(weights), minlength=len(pairs))
        left, right = pairs // num_items, pairs % num_items
        events = np.bincount(item_ids, minlength=num_items) + self.config.shrink
        similarity = together_weight / np.sqrt(events[left] * events[right])
        order = np.lexsort((-similarity, left))  # best first inside each left item; ties stay in order of right
        left, right, similarity = left[order], right[order], similarity[order]
        rank = np.arange(len(left)) - np.searchsorted(left, left)
        kept = rank < width
        self.similarity.zero_()
        device = self.similarity.device
        self.neighbour_ids[left[kept], rank[kept]] = torch.from_numpy(right[kept].astype(np.int32)).to(device)
        self.similarity[left[kept], rank[kept]] = torch.from_numpy(similarity[kept]).float().to(device)

    def loss(self, batch: Batch) -> Loss:
        return Loss(self.similarity.sum() * 0.0, 1)

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N); 0 for items that no history item was seen with."""
        lengths = batch.lengths
        rows = torch.repeat_interleave(torch.arange(batch.num_histories, device=lengths.device), lengths)  # (T,)
        back = batch.offsets[1:][rows] - 1 - torch.arange(batch.item_ids.numel(), device=lengths.device)  # 0 = newest
        vote = 0.5 ** (back / self.config.half_life)  # (T,)
        num_items = self.similarity.shape[0]
        flat_ids = rows[:, None] * num_items + self.neighbour_ids[batch.item_ids]  # (T, neighbours)
        scores = torch.zeros(batch.num_histories * num_items, device=lengths.device)
        scores.index_add_(0, flat_ids.flatten(), (vote[:, None] * self.similarity[batch.item_ids]).flatten())
        return scores.view(batch.num_histories, num_items)
