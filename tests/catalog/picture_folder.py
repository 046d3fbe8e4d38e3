"""Items of four colours that no text names, and people who like one colour each: only pictures tell who likes what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset

COLOURS = np.array([[230, 40, 40], [40, 200, 40], [40, 60, 230], [220, 210, 40]])


def colour_of(num_items: int) -> np.ndarray:
    return np.arange(num_items) % 4


def colour_log(num_items: int = 48, num_users: int = 120, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(num_users):
        liked = np.flatnonzero(colour_of(num_items) == user % 4)[:-3]  # the last three of a colour stay cold
        for item in rng.choice(liked, 7, replace=False):
            users.append(f"u{user}")
            items.append(f"i{item}")
    events = pa.table({"user": users, "item": items, "time": np.arange(len(users))})
    table = pa.table(
        {
            "key": [f"i{item}" for item in range(num_items)],
            "title": [("plain", "thing", "stuff")[item % 3] for item in range(num_items)],
            "size": rng.normal(size=num_items),
            "maker": [f"m{item % 5}" for item in range(num_items)],
        }
    )
    return build_dataset("colours", events, table)


def write_pictures(folder: Path, num_items: int = 48, side: int = 16, kind: str = "cover", count: int = 1) -> None:
    from PIL import Image

    rng = np.random.default_rng(1)
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for item, colour in enumerate(COLOURS[colour_of(num_items)]):
        pixels = np.clip(colour + rng.normal(0, 30, (side, side * count, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / kind / f"i{item}.png")
