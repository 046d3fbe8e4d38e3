"""A vector for every item: what its title's words say, and what its own id adds.

    vector(item) = own(item) + sum over its words:  word(w) / sqrt(number of words)

The id's part starts at zero and is dropped for whole items in training, so that an item is what its title says and
more: one that comes after the training has its title's part, and no id's part yet. Words are kept by a hash, so that
no vocabulary has to fit the catalogue that a model is opened with. An item whose title is changed while it serves is
read by the new one when the model is next opened.

Shape legend: N items · U items that are asked for · W words of a title · D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.catalog.tfidf import words_of
from sidera.nn.item_embedding import ItemOffset, ItemRows

BUCKETS = 8192  # that words are hashed to
MOST_WORDS = 16  # of a title that are read, the first ones


class TitledItems(nn.Module):
    """(...,) item ids -> (..., D)."""

    buckets: Tensor  # (N, W) int64
    shares: Tensor  # (N, W) float32: 1 / sqrt(words), 0 behind the last

    def __init__(self, titles: Sequence[str | None], width: int, id_dropout: float) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.own = ItemOffset(len(titles), width)
        nn.init.zeros_(self.own.weight)
        self.word = nn.Embedding(BUCKETS, width)
        nn.init.normal_(self.word.weight, std=0.02)
        buckets, shares = hashed(titles)
        self.register_buffer("buckets", buckets, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    @property
    def num_items(self) -> int:
        return len(self.buckets)

    def grow(self, items: ItemRows) -> None:
        """Take in the titles of items that came later."""
        buckets, shares = hashed(items.titles_from(self.num_items))
        device = self.word.weight.device
        self.buckets = torch.cat((self.buckets, buckets.to(device)))
        self.shares = torch.cat((self.shares, shares.to(device)))

    def forward(self, ids: Tensor) -> Tensor:
        """(U,) -> (U, D)"""
        said = F.embedding_bag(
            self.buckets[ids], self.word.weight, per_sample_weights=self.shares[ids], mode="sum"
        )  # fmt: skip
        own = self.own(ids)
        if self.training and self.id_dropout:
            own = own * (torch.rand(len(ids), 1, device=ids.device) >= self.id_dropout)
        return said + own

    def table(self) -> Tensor:
        """(N, D) of all items."""
        return self(torch.arange(self.num_items, device=self.buckets.device))


def hashed(titles: Sequence[str | None]) -> tuple[Tensor, Tensor]:
    """(N, W) buckets of the words of each title, and their shares."""
    buckets = torch.zeros(len(titles), MOST_WORDS, dtype=torch.int64)
    shares = torch.zeros(len(titles), MOST_WORDS)
    for row, title in enumerate(titles):
        words = list(dict.fromkeys(words_of(title or "")))[:MOST_WORDS]
        buckets[row, : len(words)] = torch.tensor([zlib.crc32(word.encode()) % BUCKETS for word in words])
        shares[row, : len(words)] = max(1, len(words)) ** -0.5
    return buckets, shares
