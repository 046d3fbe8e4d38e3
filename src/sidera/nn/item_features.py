"""One vector per item, from its id, its codes and its features.

The id's own vector starts at zero and is dropped for whole items in training: an item that was never trained on, or
seldom, is then what its content says and nothing random.

Shape legend: N items · D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sidera.nn.feature_inputs import FeatureInputs, FeatureLike
from sidera.nn.item_embedding import ItemOffset, ItemRows


class ItemFeatures(nn.Module):
    """(...,) item ids -> (..., D)."""

    def __init__(
        self,
        codes: np.ndarray,
        level_sizes: tuple[int, ...],
        features: Sequence[FeatureLike],
        columns: Mapping[str, np.ndarray],
        width: int,
        id_dropout: float = 0.2,
    ) -> None:
        """``codes`` (N, L); ``columns`` feature -> (N, ...)."""
        super().__init__()
        self.width, self.id_dropout = width, id_dropout
        self.own = ItemOffset(len(codes), width)
        nn.init.zeros_(self.own.weight)
        self.register_buffer("codes", torch.from_numpy(np.asarray(codes, dtype=np.int64)), persistent=False)
        self.code = nn.ModuleList(nn.Embedding(size, width) for size in level_sizes)
        self.features = FeatureInputs(features, width)
        self.places = {feature.name: place for place, feature in enumerate(features)}  # a name may be no attribute's
        self.fields = tuple(feature.name for feature in features if feature.kind == "category")
        for name, place in self.places.items():
            self.register_buffer(f"column_{place}", torch.from_numpy(np.array(columns[name])), persistent=False)
        for module in self.code:
            nn.init.normal_(module.weight, std=0.5 * width**-0.5)  # type: ignore[arg-type]
        self.features.start(0.5 * width**-0.5)

    @property
    def num_items(self) -> int:
        return self.own.num_embeddings

    def grow(self, items: ItemRows) -> None:
        """Take in items that came later: their codes and their features."""
        device = self.own.weight.device
        self.codes = torch.from_numpy(np.asarray(items.codes, dtype=np.int64)).to(device)
        for name, place in self.places.items():
            setattr(self, f"column_{place}", torch.from_numpy(np.array(items.features[name])).to(device))

    def category_ids(self, field: str) -> Tensor:
        """(N,) category of every item, 0: unknown."""
        return self._column(field)

    def _column(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, f"column_{self.places[name]}"))

    def table(self) -> Tensor:
        """(N, D) of all items: cheaper than one by one as soon as a batch names most of them."""
        return self._summed(self.own.weight, self.codes, {name: self._column(name) for name in self.places})

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) item ids -> (n, D)"""
        columns = {name: self._column(name)[ids] for name in self.places}
        return self._summed(self.own(ids), self.codes[ids], columns)

    def _summed(self, own: Tensor, codes: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        if self.training and self.id_dropout:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self.id_dropout)
        parts = [own, *(embed(codes[:, level]) for level, embed in enumerate(self.code))]
        parts += self.features(columns)
        return torch.stack(parts).sum(0)
