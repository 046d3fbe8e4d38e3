"""Popularity: every user gets the items with the most training events. The floor under every other number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts
from sidera.roles import Loss


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

    trains_on = "nothing"
    reads_codes = False
    counts: Tensor  # (N,)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.register_buffer("counts", torch.tensor(np.asarray(catalog.popularity), dtype=torch.float32))

    def loss(self, batch: Batch) -> Loss:
        return Loss(self.counts.sum() * 0.0, 1)

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N)"""
        return self.counts.expand(batch.num_histories, -1)
