"""Generated logs for tests and benchmarks: a small shop, and a checkerboard whose right answer is known.

``tiny_log``: items belong to topics and are titled with topic words; a user has one or two tastes and mostly moves on
to one of the three items that tend to follow the last one, so that reading the sequence pays and popularity does not.
``checkerboard``: items stand in cycles and after an item always comes the next of its cycle. A model that learned
anything at all must be perfect there; contract tests use it.
``tiny_exposures``: slates with feedback, drawn at random, for tests of what reads them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset

FIRST_DAY = 1_700_000_000  # unix seconds
TOPICS = {
    "tea": ("green", "leaf", "kettle", "infuser", "jasmine", "oolong"),
    "cycling": ("saddle", "pedal", "chain", "helmet", "tyre", "lamp"),
    "garden": ("spade", "seed", "hose", "fern", "pot", "rake"),
    "baking": ("flour", "whisk", "oven", "yeast", "tin", "dough"),
    "camping": ("tent", "stove", "lantern", "rope", "flask", "mat"),
    "music": ("guitar", "string", "tuner", "drum", "reed", "bow"),
    "painting": ("brush", "canvas", "easel", "ink", "palette", "varnish"),
    "chess": ("board", "clock", "knight", "opening", "endgame", "puzzle"),
    "sewing": ("needle", "thread", "button", "linen", "pattern", "zip"),
    "astronomy": ("lens", "tripod", "nebula", "atlas", "filter", "mount"),
}
FINISHES = ("small", "large", "classic", "deluxe", "travel", "starter", "light", "solid")
NUM_FOLLOWERS = 3
FOLLOW_SHARE = 0.8  # of the steps go to a follower of the user's last item of the topic
SWITCH_SHARE = 0.15  # of the steps change to the user's other taste


def tiny_log(num_users: int = 400, num_items: int = 300, seed: int = 0) -> Dataset:
    """Users with 5 to 24 events, hours apart; nobody meets an item twice."""
    rng = np.random.default_rng(seed)
    topic_names = list(TOPICS)[: max(1, min(len(TOPICS), num_items // 12))]
    topic_of = np.arange(num_items) % len(topic_names)
    members = [np.flatnonzero(topic_of == topic) for topic in range(len(topic_names))]
    # choices of a topic without a lead are skewed, as popularity is
    weights = [rng.permutation(1.0 / np.arange(1, len(member) + 1) ** 0.7) for member in members]
    followers = np.stack([rng.choice(members[topic], NUM_FOLLOWERS) for topic in topic_of])  # (N, 3)

    users, items, times = [], [], []
    for user in range(num_users):
        tastes = rng.choice(len(topic_names), size=min(len(topic_names), int(rng.integers(1, 3))), replace=False)
        last: dict[int, int] = {}
        seen: set[int] = set()
        topic, now = int(rng.choice(tastes)), FIRST_DAY + int(rng.integers(60 * 86_400))
        for _ in range(int(rng.integers(5, 25))):
            if rng.random() < SWITCH_SHARE:
                topic = int(rng.choice(tastes))
            item = _next_item(
                rng, followers[last[topic]] if topic in last else None, members[topic], weights[topic], seen
            )
            if item is None:
                break
            seen.add(item)
            last[topic] = item
            now += int(rng.integers(600, 2 * 86_400))
            users.append(f"user{user:04d}")
            items.append(f"item{item:04d}")
            times.append(now)
    return build_dataset(
        "tiny",
        pa.table({"user": users, "item": items, "time": times}),
        _titled_items(rng, topic_names, topic_of),
    )


def _next_item(
    rng: np.random.Generator,
    followers: np.ndarray | None,
    members: np.ndarray,
    weights: np.ndarray,
    seen: set[int],
) -> int | None:
    """An unseen follower of the last item most of the time, else an unseen item of the topic by its weight."""
    if followers is not None and rng.random() < FOLLOW_SHARE:
        fresh = [int(item) for item in followers if int(item) not in seen]
        if fresh:
            return fresh[int(rng.integers(len(fresh)))]
    fresh_mask = np.array([int(item) not in seen for item in members])
    if not fresh_mask.any():
        return None
    chances = weights * fresh_mask
    return int(rng.choice(members, p=chances / chances.sum()))


def _titled_items(rng: np.random.Generator, topic_names: list[str], topic_of: np.ndarray) -> pa.Table:
    titles, categories = [], []
    for item, topic in enumerate(topic_of):
        words = rng.choice(TOPICS[topic_names[topic]], size=2, replace=False)
        titles.append(f"{rng.choice(FINISHES)} {topic_names[topic]} {words[0]} {words[1]} no. {item}".capitalize())
        categories.append([topic_names[topic], str(words[0])])
    keys = [f"item{item:04d}" for item in range(len(topic_of))]
    return pa.table({"key": keys, "title": titles, "categories": categories})


def checkerboard(
    num_users: int = 200, num_items: int = 24, num_cycles: int = 4, length: int = 8, seed: int = 0
) -> Dataset:
    """Every user walks ``length`` steps of a cycle from a random item; ``checkerboard_next`` is the right answer."""
    rng = np.random.default_rng(seed)
    following = checkerboard_next(num_items, num_cycles)
    walk = np.empty((num_users, length), dtype=np.int64)
    walk[:, 0] = np.arange(num_users) % num_items  # every item starts somebody's walk, if the users suffice
    rng.shuffle(walk[:, 0])
    for step in range(1, length):
        walk[:, step] = following[walk[:, step - 1]]
    names = np.array([f"item{item:04d}" for item in range(num_items)])
    events = {
        "user": np.repeat([f"user{user:04d}" for user in range(num_users)], length),
        "item": names[walk.ravel()],
        "time": np.tile(FIRST_DAY + 3600 * np.arange(length), num_users),
    }
    titles = [f"Cycle {item % num_cycles} place {item // num_cycles}" for item in range(num_items)]
    return build_dataset("checkerboard", pa.table(events), pa.table({"key": names, "title": titles}))


def checkerboard_next(num_items: int = 24, num_cycles: int = 4) -> np.ndarray:
    """(N,) the item after each item: items i, i + num_cycles, i + 2 num_cycles, ... form a cycle."""
    item = np.arange(num_items)
    following = item + num_cycles
    return np.where(following < num_items, following, item % num_cycles)


def tiny_exposures(num_users: int = 6, per_user: int = 24, seed: int = 0) -> Dataset:
    """Slates of four with feedback, categories and profiles, all drawn at random; about half is clicked."""
    rng = np.random.default_rng(seed)
    count = num_users * per_user
    duration = rng.choice([10.0, 100.0], count)
    events = pa.table(
        {
            "user": np.repeat([f"u{user}" for user in range(num_users)], per_user),
            "item": [f"i{item}" for item in rng.integers(0, 20, count)],
            "time": np.tile(np.arange(per_user), num_users) * 60,
            "click": rng.random(count) < 0.5,
            "like": rng.random(count) < 0.1,
            "watch_time": (duration * rng.random(count)).astype(np.float32),
            "duration": duration.astype(np.float32),
            "request": np.tile(np.arange(per_user) // 4, num_users),
            "uniform": rng.random(count) < 0.1,
        }
    )
    items = pa.table(
        {
            "key": [f"i{item}" for item in range(20)],
            "creator": [f"c{item % 3}" if item else None for item in range(20)],
            "tags": [[f"t{item % 5}", "x"] if item % 2 else [] for item in range(20)],
        }
    )
    users = pa.table({"key": [f"u{user}" for user in range(num_users)], "region": ["north", "south", None] * 2})
    return build_dataset("tiny_exposures", events, items, users)
