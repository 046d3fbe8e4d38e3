"""A world small enough to be played in a test, and its log in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidera.lab.trial import Audience, prepare
from sidera.sim.config import WorldConfig, world_config
from sidera.sim.world import World

SMALL = {"num_items": 300, "num_topics": 8, "num_creators": 40, "num_candidates": 20, "arrival_days": 5.0}


def small_config(name: str = "easy", **changes: Any) -> WorldConfig:
    return world_config(name, {**SMALL, **changes})


def small_world(name: str = "easy", seed: int = 0, **changes: Any) -> World:
    return World.build(small_config(name, **changes), seed)


def logged(audience: Audience) -> dict[str, np.ndarray]:
    """The columns of all events, one after the other; ``row`` is the user's."""
    mask = np.arange(audience.events["item"].shape[1])[None] < audience.counts[:, None]
    rows = np.broadcast_to(np.arange(len(audience.counts))[:, None], mask.shape)
    return {"row": rows[mask], **{name: values[mask] for name, values in audience.events.items()}}


def click_counts(world: World, num_users: int, days: int) -> np.ndarray:
    log = logged(prepare(world, np.arange(10_000, 10_000 + num_users), days))
    return np.bincount(log["item"][log["click"]], minlength=world.items.num_items)
