"""A log of exposures with feedback in which everything is known: who likes which topic, and which user means what.

Users of region "keen" click what they like, follow it, and mind nothing; "wary" users click anything and say by likes
what was good. So the same click is worth more from one than from the other.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa

from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.data.config import DataConfig, View, make_views
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset

NUM_ITEMS, NUM_TOPICS, SLATE = 40, 4, 4


def labelled_log(num_users: int = 120, per_user: int = 32, seed: int = 0) -> Dataset:
    """Requests of four items; a user likes one topic of four, item 0 of each topic is bait."""
    rng = np.random.default_rng(seed)
    count = num_users * per_user
    user = np.repeat(np.arange(num_users), per_user)
    item = rng.integers(0, NUM_ITEMS, count)
    liked = item % NUM_TOPICS == (user // 2) % NUM_TOPICS
    keen = user % 2 == 0
    click = rng.random(count) < np.where(keen, np.where(liked, 0.9, 0.1), 0.8)
    like = (rng.random(count) < np.where(liked, 0.6, 0.02)) & ~keen
    dislike = rng.random(count) < np.where(liked, 0.0, 0.1)
    duration = np.where(item < NUM_ITEMS // 2, 12.0, 100.0)
    share = np.where(liked, 0.6, 0.2) + 0.3 * rng.random(count)
    place = np.tile(np.arange(per_user), num_users)
    day = place // 16  # two sessions of 16 exposures
    events = pa.table(
        {
            "user": [f"u{number}" for number in user],
            "item": [f"i{number}" for number in item],
            "time": day * 86_400 + place * 60,
            "click": click,
            "like": like,
            "dislike": dislike,
            "watch_time": (duration * share).astype(np.float32),
            "duration": duration.astype(np.float32),
            "request": place // SLATE,
        }
    )
    items = pa.table(
        {
            "key": [f"i{number}" for number in range(NUM_ITEMS)],
            "text": [f"topic {'abcd'[number % NUM_TOPICS]} film {number}" for number in range(NUM_ITEMS)],
            "tags": [[f"t{number % NUM_TOPICS}"] for number in range(NUM_ITEMS)],
            "creator": [f"c{number % 7}" for number in range(NUM_ITEMS)],
            "viral": [number % 10 == 0 for number in range(NUM_ITEMS)],
            "created": pa.array([number * 86_400 if number < 38 else None for number in range(NUM_ITEMS)], pa.int64()),
            "length": [12.0 if number < NUM_ITEMS // 2 else 100.0 for number in range(NUM_ITEMS)],
        }
    )
    users = pa.table(
        {
            "key": [f"u{number}" for number in range(num_users)],
            "region": ["keen" if number % 2 == 0 else "wary" for number in range(num_users)],
        }
    )
    return build_dataset("labelled", events, items, users)


@cache
def labelled_view() -> tuple[View, Catalog]:
    config = DataConfig(positive="click")
    everything, positives = make_views(labelled_log(), config)
    settings = CatalogConfig(
        vectors=("tfidf",), quantizer={"num_levels": 2, "codebook_size": 8}, vector_dim=8, collision="greedy"
    )
    return everything, build_catalog(positives.dataset, positives.split, settings, positives.schema)[0]
