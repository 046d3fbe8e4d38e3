"""A world: a config and a seed made into items, and users on demand.

    world = World.build(world_config("easy"), seed=0)
    users = world.users(np.arange(1000))

Everything follows from (config, seed): ``world.users(ids)`` gives the same people in any order and any number. Day
0 begins at ``FIRST_DAY``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sidera.config import digest
from sidera.sim.config import WorldConfig
from sidera.sim.items import Items, build_items
from sidera.sim.text import item_texts
from sidera.sim.users import DEVICES, Users, build_users

FIRST_DAY = 1_699_920_000  # unix seconds, a midnight
DAY = 86_400


@dataclass(frozen=True)
class World:
    config: WorldConfig
    seed: int
    items: Items

    @classmethod
    def build(cls, config: WorldConfig, seed: int = 0) -> World:
        return cls(config, seed, build_items(config, seed))

    @property
    def digest(self) -> str:
        """Names config and seed."""
        return digest({"config": self.config, "seed": self.seed})

    def users(self, ids: NDArray[np.integer]) -> Users:
        """The people with these ids, before their first day."""
        return build_users(ids, self.config, self.seed)

    def item_keys(self) -> list[str]:
        return [f"v{number:07d}" for number in range(self.items.num_items)]

    def items_table(self, days: int) -> pa.Table:
        """What the platform sees of its items after so many days; their truth is not in it."""
        items = self.items
        texts = item_texts(items, self.config, self.seed)
        cold_mask = items.arrival >= days
        created = FIRST_DAY + DAY * items.arrival.astype(np.int64)
        offsets = np.arange(items.num_items + 1, dtype=np.int32) * items.content.shape[1]
        return pa.table(
            {
                "key": pa.array(self.item_keys(), type=pa.string()),
                **{name: pa.array(values) for name, values in texts.items()},
                "creator": pa.array([f"c{number:05d}" for number in items.creator.tolist()], type=pa.string()),
                "duration": pa.array(items.duration),
                "viral": pa.array(items.viral),
                "created": pa.array(created, mask=cold_mask),  # null: after the log
                "content": pa.ListArray.from_arrays(offsets, pa.array(items.content.ravel())),
            }
        )

    def users_table(self, users: Users) -> pa.Table:
        """Profiles; taste, patience and activity are not in it."""
        columns = {name: pa.array(values.tolist()) for name, values in self.profiles(users).items()}
        return pa.table({"key": pa.array(user_keys(users.ids), type=pa.string()), **columns})

    def profiles(self, users: Users) -> dict[str, NDArray[np.str_]]:
        """field -> (U,) str: what the platform knows of its users."""
        return {
            "age_group": np.array([f"age{number}" for number in range(self.config.num_age_groups)])[users.age_group],
            "region": np.array([f"region{number}" for number in range(self.config.num_regions)])[users.region],
            "device": np.array(DEVICES)[users.device],
        }


def user_keys(ids: NDArray[np.integer]) -> list[str]:
    return [f"u{number:08d}" for number in ids.tolist()]
