"""The users of a world: lasting taste, what changes while they watch, and when they leave or come back.

A :class:`Users` is a block of users side by side in arrays; every number of a user depends on the seed and on its own
id only, so a user is the same person in any block. Only ``feedback`` and ``online`` read what is private here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.sim.config import WorldConfig
from sidera.sim.items import Ids, Items
from sidera.sim.portable import Floats, sigmoid
from sidera.sim.randomness import Bits, Purpose, below, bits, bits_table, keys, low_uniform, normal, sub_keys, uniform

DEVICES = ("phone", "tablet", "tv")
DEVICE_PATIENCE = np.array([0.0, 0.1, 0.2], dtype=np.float32)  # logits: larger screens are left less easily
Rows = NDArray[np.int64]


@dataclass
class Users:
    """U users; K topics, S sub-topics in all, R items remembered, C creators remembered."""

    ids: NDArray[np.int64]  # (U,)
    keys: Bits  # (U,) of their random numbers
    # who they are
    age_group: Ids  # (U,)
    region: Ids  # (U,)
    device: Ids  # (U,)
    taste: Floats  # (U, K)
    subtopic_taste: Floats  # (U, S)
    patience: Floats  # (U,)
    activity: Floats  # (U,)
    join_day: Ids  # (U,)
    estimate: Floats  # (U, K): the logger's idea of the taste
    # how they are now
    drift: Floats  # (U, K)
    satiation: Floats  # (U, K)
    recent_items: Ids  # (U, R), a ring
    recent_creators: Ids  # (U, C), a ring
    num_shown: Rows  # (U,) items in all
    mood: Floats  # (U,)
    day_satisfaction: Floats  # (U,), summed over the day
    day_shown: Ids  # (U,)
    last_satisfaction: Floats  # (U,), mean of the last day here
    last_day: Ids  # (U,), -1: never here

    @property
    def num_users(self) -> int:
        return len(self.ids)

    def is_repeat(self, rows: Rows, items: Ids) -> NDArray[np.bool_]:
        """(n,) True where the item is among those remembered."""
        return (self.recent_items[rows] == items[:, None]).any(axis=1)

    def creator_count(self, rows: Rows, creators: Ids) -> Floats:
        """(n,) how many of the creators remembered are this one."""
        return (self.recent_creators[rows] == creators[:, None]).sum(axis=1).astype(np.float32)

    def begin_day(self, rows: Rows, config: WorldConfig) -> None:
        """Night has passed for those who come."""
        self.drift[rows] *= np.float32(config.drift_overnight)
        self.satiation[rows] *= np.float32(config.satiation_overnight)
        self.mood[rows] = 0
        self.day_satisfaction[rows] = 0
        self.day_shown[rows] = 0

    def watch(self, rows: Rows, chosen: Ids, items: Items, felt: Floats, click: NDArray[np.bool_], config: WorldConfig
    ) -> None:  # fmt: skip
        """What one item each leaves behind. ``felt``: satisfaction, or its substitute where nothing was clicked."""
        topic, second = items.topic[chosen], items.second_topic[chosen]
        main_weight, second_weight = items.main_weight[chosen], items.second_weight[chosen]
        drift = self.drift[rows] * np.float32(config.drift_decay)  # (n, K)
        satiation = self.satiation[rows] * np.float32(config.satiation_decay)
        position = np.arange(len(rows)) * drift.shape[1]
        gain = np.float32(config.drift_gain) * np.where(click, felt, np.float32(0))
        drift.ravel()[position + topic] += gain * main_weight
        drift.ravel()[position + second] += gain * second_weight
        satiation.ravel()[position + topic] += main_weight
        satiation.ravel()[position + second] += second_weight
        self.drift[rows], self.satiation[rows] = drift, satiation
        shown = self.num_shown[rows]
        self.recent_items[rows, shown % self.recent_items.shape[1]] = chosen
        self.recent_creators[rows, shown % self.recent_creators.shape[1]] = items.creator[chosen]
        self.num_shown[rows] = shown + 1

    def feel(self, rows: Rows, felt: Floats, config: WorldConfig) -> None:
        """Mood after one more slot of the slate, an empty one too."""
        keep = np.float32(config.mood_decay)
        self.mood[rows] = keep * self.mood[rows] + (np.float32(1) - keep) * felt
        self.day_satisfaction[rows] += felt
        self.day_shown[rows] += 1

    def leaves(self, rows: Rows, words: Bits, config: WorldConfig) -> NDArray[np.bool_]:
        """(n,) True where the user has enough for today."""
        chance = sigmoid(np.float32(config.exit_bias) - self.mood[rows] - self.patience[rows])
        return (uniform(words) < chance) | (self.day_shown[rows] >= config.max_items_per_day)

    def end_day(self, rows: Rows, day: int) -> None:
        """Everybody who came has left."""
        self.last_satisfaction[rows] = self.day_satisfaction[rows] / np.maximum(self.day_shown[rows], 1).astype(
            np.float32
        )
        self.last_day[rows] = day

    def coming(self, day: int, day_keys: Bits, config: WorldConfig) -> NDArray[np.bool_]:
        """(U,) True for those who open the app on a day: on the day they join, later if they liked the last time."""
        idle = np.minimum(day - self.last_day - 1, 5).astype(np.float32)
        score = np.float32(config.return_bias) + np.float32(config.return_weight) * self.last_satisfaction
        score += self.activity - np.float32(config.idle_penalty) * idle
        back = uniform(bits(day_keys, Purpose.RETURN)) < sigmoid(score)
        return np.where(self.last_day >= 0, back, self.join_day == day)


def build_users(ids: NDArray[np.integer], config: WorldConfig, seed: int) -> Users:
    """The users with these ids, before their first day."""
    numbers: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
    own = keys(seed, "users", numbers)
    shape = (len(ids), config.num_topics)
    age_group = below(bits(own, 0), config.num_age_groups)
    device = below(bits(own, 2), len(DEVICES))
    taste = np.float32(config.other_taste_std) * _normals(own, 1024, config.num_topics)
    taste += np.float32(config.other_taste_mean)
    favourite_mask = _favourites(own, age_group, config, seed)
    words = bits_table(own, 4096, config.num_topics)
    span = np.float32(config.favourite_high - config.favourite_low)
    liked = np.float32(config.favourite_low) + span * uniform(words)
    taste = np.where(favourite_mask, liked, taste)
    num_subtopics = config.num_topics * config.num_subtopics
    patience = np.float32(config.patience_std) * normal(bits(own, 3)) + DEVICE_PATIENCE[device]
    return Users(
        ids=numbers,
        keys=own,
        age_group=age_group.astype(np.int32),
        region=below(bits(own, 1), config.num_regions).astype(np.int32),
        device=device.astype(np.int32),
        taste=taste,
        subtopic_taste=np.float32(config.subtopic_taste_std) * _normals(own, 1 << 20, num_subtopics),
        patience=patience,
        activity=np.float32(config.activity_std) * normal(bits(own, 4)),
        join_day=below(bits(own, 5), config.join_days).astype(np.int32),
        estimate=taste + np.float32(config.taste_noise) * _normals(own, 2048, config.num_topics),
        drift=np.zeros(shape, dtype=np.float32),
        satiation=np.zeros(shape, dtype=np.float32),
        recent_items=np.full((len(ids), config.repeat_window), -1, dtype=np.int32),
        recent_creators=np.full((len(ids), config.creator_window), -1, dtype=np.int32),
        num_shown=np.zeros(len(ids), dtype=np.int64),
        mood=np.zeros(len(ids), dtype=np.float32),
        day_satisfaction=np.zeros(len(ids), dtype=np.float32),
        day_shown=np.zeros(len(ids), dtype=np.int32),
        last_satisfaction=np.zeros(len(ids), dtype=np.float32),
        last_day=np.full(len(ids), -1, dtype=np.int32),
    )


def day_keys(users: Users, day: int, noise: int) -> Bits:
    """(U,) keys of one day; another ``noise`` is another fate of the same people."""
    return sub_keys(sub_keys(users.keys, noise), day)


def _normals(own: Bits, counter: int, count: int) -> Floats:
    return normal(bits_table(own, counter, count).ravel()).reshape(len(own), count)


def _favourites(own: Bits, age_group: NDArray[np.int64], config: WorldConfig, seed: int) -> NDArray[np.bool_]:
    """(U, K) True for the favourite topics: those with the highest draws, which people of one age share in part."""
    groups = bits_table(keys(seed, "ages", np.arange(config.num_age_groups)), 0, config.num_topics)
    pull = np.float32(config.age_pull)
    draws = (np.float32(1) - pull) * uniform(bits_table(own, 3072, config.num_topics))
    draws += pull * (uniform(groups)[age_group] + low_uniform(bits_table(own, 3072, config.num_topics))) / np.float32(2)
    mask = np.zeros(draws.shape, dtype=np.bool_)
    rows = np.arange(len(own))
    for _ in range(config.favourite_topics):
        best = np.where(mask, np.float32(-1), draws).argmax(axis=1)
        mask[rows, best] = True
    return mask
