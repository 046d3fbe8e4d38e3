"""As much of a Catalog as a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from hand_made import hand_made
from sidera.batch import Batch
from sidera.data.features import FeatureSchema


@dataclass(frozen=True)
class SmallCatalog:
    codes: np.ndarray  # (N, L)
    level_sizes: tuple[int, ...]
    popularity: np.ndarray  # (N,)
    codebook_id: str = "test"
    schema: FeatureSchema = field(default_factory=FeatureSchema)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def item_keys(self) -> np.ndarray:
        return np.array([f"i{item}" for item in range(len(self.codes))])

    @property
    def num_items(self) -> int:
        return len(self.codes)


def small_catalog(num_items: int = 12, level_sizes: tuple[int, ...] = (4, 3, 2), seed: int = 0) -> SmallCatalog:
    """Items on distinct random codes."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(level_sizes)), num_items, replace=False)
    codes = np.stack(np.unravel_index(flat, level_sizes), axis=1).astype(np.int32)
    return SmallCatalog(codes, level_sizes, rng.integers(0, 20, num_items))


def position_batch(lengths: list[int], num_items: int = 12, seed: int = 0, sizes: tuple[int, ...] = ()) -> Batch:
    """Random histories with a target per event."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items, targets = (torch.randint(num_items, (int(offsets[-1]),), generator=generator) for _ in range(2))
    return hand_made(
        items,
        offsets,
        targets,
        items=small_catalog(num_items, sizes) if sizes else None,
        kind="event",
        global_count=targets.numel(),
    )
