"""What an item is, as one vector: its codes and content through a residual network. Late items have one too.

An item's own vector (``id_dropout`` below 1) sharpens what was often seen; with 1 the tower reads content alone, and an
item without a single event is no other thing to it than a popular one.

Shape legend: n items asked for · N items · D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from sidera.nn.feature_inputs import FeatureLike
from sidera.nn.item_features import ItemFeatures


class ItemSource(Protocol):
    """What is read of a Catalog; this room stands below the catalogue's."""

    codes: Any  # (N, L)
    level_sizes: tuple[int, ...]
    features: Mapping[str, Any]  # feature -> (N, ...)


class ItemTower(nn.Module):
    """(n,) item ids -> (n, D), of mean 0 and spread 1."""

    def __init__(
        self, catalog: Any, width: int, features: Sequence[FeatureLike], id_dropout: float = 1.0, codes: bool = True
    ) -> None:
        """``catalog``: an :class:`ItemSource`. ``features``: which of its columns are read; ``codes``: so are they.
        ``id_dropout``: share of items whose own vector a step drops."""
        super().__init__()
        columns = {feature.name: np.asarray(catalog.features[feature.name]) for feature in features}
        level_sizes = tuple(catalog.level_sizes) if codes else ()
        self.items = ItemFeatures(np.asarray(catalog.codes), level_sizes, features, columns, width, id_dropout)
        self.norm_in = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """``ids`` None: all items in the order of their ids."""
        x = self.norm_in(self.items.table() if ids is None else self.items(ids))
        out: Tensor = self.norm_out(x + self.down(nn.functional.gelu(self.up(x))))
        return out


def unit(vectors: Tensor) -> Tensor:
    """(..., D) at length 1; a zero vector stays."""
    return nn.functional.normalize(vectors, dim=-1)
