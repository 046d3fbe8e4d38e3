"""Popularity: every user gets the items with the most training events. The floor under every other number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts
from sidera.data.config import View
from sidera.data.split import item_popularity


class Popularity(nn.Module):
    """Scores an item by its number of training events, the same for all histories."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 1  # events read of a history (none matters here)

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "scorer"
    reads_codes = False
    reads_late_items = False  # nothing was counted of them
    counts: Tensor  # (N,)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.register_buffer("counts", torch.zeros(catalog.num_items))

    def fit_once(self, view: View) -> None:
        """Count the training events of every item."""
        found = item_popularity(view.dataset, view.split)
        self.counts[: len(found)] = torch.from_numpy(found).to(self.counts)

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        return self.counts.expand(batch.num_histories, -1)
