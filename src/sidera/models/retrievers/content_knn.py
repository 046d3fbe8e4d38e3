"""Content-kNN: items whose titles are like those of the history. What they are, and nothing of who had them.

    score(c) = sum over events j of the history, 0 = newest:  fading^j cos(title of item_j, title of c)

It reads an item that came after the training as any other, so it is the bar for new items, as counting is for known
ones. ``choose`` takes ``fading`` from a grid, by NDCG@10 on validation rows.

    sidera run recipes/any/content_knn.toml --data data/mine --out runs/any-content_knn

Shape legend: B histories · T events of all · N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.data.config import View
from sidera.models.retrievers.title_words import TitleWords, WordRows
from sidera.models.retrievers.validation import validation_ndcg
from sidera.nn.item_embedding import ItemRows

FADINGS = (0.35, 0.5, 0.7, 0.85)


class ContentKNN(nn.Module):
    """An index of the catalogue's titles; nothing is learned but how fast a history fades."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 20  # events read of a history
        fading: float = 0.7  # weight of a history item against the one behind it
        choose: bool = True  # take fading from a grid, by the validation rows

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history")
            check_value("[model]", "fading", self.fading, 0 < self.fading <= 1, "above 0, at most 1")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "scorer"
    reads_codes = False
    reads_titles = True
    fading: Tensor  # (1,)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.register_buffer("fading", torch.tensor([config.fading]))
        self.titles = TitleWords(list(catalog.titles))

    @property
    def num_items(self) -> int:
        return len(self.titles.items)

    def grow(self, items: ItemRows) -> None:
        """Take in the titles of items that came later."""
        titles = items.titles_from(self.num_items)
        self.titles = self.titles.with_titles(titles)

    def fit_once(self, view: View) -> None:
        """Choose how fast a history fades."""
        if self.config.choose and len(view.split.valid):
            trials = {}
            for fading in FADINGS:
                self.fading.fill_(fading)
                trials[fading] = validation_ndcg(self, view)
            self.fading.fill_(max(trials, key=lambda fading: trials[fading]))

    def count_again(self, view: View) -> None:
        """Nothing: it counts no events."""

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N); 0 for items that share no word with the history."""
        events = batch.events
        weights = (self.fading[0] ** events.from_end).cpu().numpy()  # (T,)
        rows = self.titles.items.take(batch.item_ids.cpu().numpy())
        lengths = np.diff(rows.offsets)
        ends = rows.offsets[events.offsets.cpu().numpy()]
        asked = WordRows(ends, rows.words, rows.weights * np.repeat(weights, lengths))
        return torch.from_numpy(self.titles.scores(asked)).to(self.fading.device)
