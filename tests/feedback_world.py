"""A catalogue with categories and feedback columns, and random requests on it: what models that read feedback need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hand_made import changed, hand_made
from sidera.batch import Batch
from sidera.data.feature import Feature, Owner
from sidera.data.features import FeatureSchema


def category(name: str, owner: Owner, *vocabulary: str) -> Feature:
    """As it is found in a table where some rows lack it."""
    return Feature(name, "category", owner, name, vocabulary, has_missing=True)


SCHEMA = FeatureSchema(
    positive="long_view",
    labels=("click", "like", "long_view"),
    has_watch_time=True,
    has_duration=True,
    features=(
        category("creator", "item", "a", "b", "c"),
        category("tags", "item", "x", "y"),
        category("region", "user", "north", "south"),
    ),
    long_view_seconds=(5.0,) * 17,
)
NOW = 1_700_000_000  # unix seconds


@dataclass(frozen=True)
class FeedbackCatalog:
    """As much of a Catalog as a model reads."""

    codes: np.ndarray  # (N, L)
    level_sizes: tuple[int, ...]
    schema: FeatureSchema = SCHEMA
    features: dict[str, np.ndarray] = field(default_factory=dict)
    codebook_id: str = "test"

    @property
    def num_items(self) -> int:
        return len(self.codes)


def feedback_catalog(num_items: int = 20, level_sizes: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Any:
    """Items on distinct random codes with random categories, some of them unknown."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(level_sizes)), num_items, replace=False)
    codes = np.stack(np.unravel_index(flat, level_sizes), axis=1).astype(np.int32)
    features = {each.name: rng.integers(0, each.num_values, num_items) for each in SCHEMA.owned("item")}
    return FeedbackCatalog(codes, level_sizes, features=features)


def bare_catalog(num_items: int = 20, level_sizes: tuple[int, ...] = (5, 4, 3)) -> Any:
    """The same items in a log without feedback, categories or profiles."""
    return replace(feedback_catalog(num_items, level_sizes), schema=FeatureSchema(), features={})


def requests(lengths: list[int], targets: list[int] | None = None, num_items: int = 20, seed: int = 0) -> Batch:
    """Histories of these lengths with random feedback, and so many targets each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, high: int) -> torch.Tensor:
        return torch.randint(high, (size,), generator=generator)

    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total, histories = int(offsets[-1]), len(lengths)
    duration = draw(total, 100).float()  # some are zero
    feedback = {name: draw(total, 2).float() for name in SCHEMA.labels}
    feedback |= {"watch_time": duration * torch.rand(total, generator=generator), "duration": duration}
    ages = [torch.sort(draw(length, 10**6), descending=True).values for length in lengths]
    batch = hand_made(
        item_ids=draw(total, num_items),
        offsets=offsets,
        times=NOW - torch.cat([*ages, torch.empty(0, dtype=torch.int64)]),
        as_of=torch.full((histories,), NOW),
        feedback=feedback,
        profiles={"region": draw(histories, 3)},
        items=feedback_catalog(num_items),
    )
    if targets is None:
        return batch
    bounds = torch.tensor([0, *targets]).cumsum(0)
    count = int(bounds[-1])
    return changed(
        batch, feedback_catalog(num_items), target_ids=draw(count, num_items), target_offsets=bounds, kind="request",
        global_count=count,
    )  # fmt: skip
