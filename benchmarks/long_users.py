"""Users with long histories, and a fixed retriever that reads tokens: what ``lifelong.py`` judges quality with.

Two sources. ``world_users``: people of the simulated world who come every day and see a thousand items until they have
clicked so many; their taste lasts, moods come and go. ``movielens_users``: MovieLens-1M users with many ratings of 4
or 5; item vectors from the *other* users' ratings alone.

The retriever is a kernel density over tokens, nothing learned: score(i) = log sum_t count_t^gamma exp(beta cos(i, t)).
``beta`` and ``gamma`` are chosen for each contestant on validation users.

Shape legend: N items · D width · T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BETAS = (5.0, 10.0, 20.0, 40.0, 80.0)
GAMMAS = (0.0, 0.5, 1.0)
Tokens = tuple[NDArray, NDArray]  # item ids (T,), counts (T,)


@dataclass(frozen=True)
class LongUsers:
    """Histories in time order, and what came next."""

    vectors: NDArray[np.float32]  # (N, D)
    histories: list[NDArray]  # of each user (n,) item ids
    times: list[NDArray]  # (n,) unix seconds
    targets: list[NDArray]  # item ids of the next positives, without repeats


def world_users(num_users: int, num_events: int, num_targets: int, seed: int, num_items: int = 10_000) -> LongUsers:
    """People who clicked ``num_events`` items and then ``num_targets`` more; vectors are the items' content numbers."""
    from sidera.sim.config import world_config
    from sidera.sim.day import Exposures, run_day
    from sidera.sim.searches import SearchLog
    from sidera.sim.simulate import logger_choice
    from sidera.sim.world import World

    config = world_config(
        "easy",
        {
            "num_items": num_items, "num_creators": num_items // 20, "num_subtopics": 16, "num_candidates": 40,
            "max_items_per_day": 1000, "exit_bias": -12.0, "cold_share": 0.0, "join_days": 1, "arrival_days": 120.0,
        },
    )  # fmt: skip
    world = World.build(config, seed)
    users = world.users(np.arange(num_users))
    rows: list[NDArray] = []
    items: list[NDArray] = []
    times: list[NDArray] = []
    counts = np.zeros(num_users, dtype=np.int64)

    def record(seen: Exposures) -> None:
        clicked = seen.feedback.click
        rows.append(seen.rows[clicked].astype(np.int32))
        items.append(seen.item_ids[clicked])
        times.append(seen.times[clicked])
        counts[seen.rows[clicked]] += 1

    day, need = 0, num_events + num_targets
    while counts.min() < need:
        going_on = counts < need
        choose = logger_choice(world, users, day)
        run_day(world, users, day, 0, choose, record, SearchLog(num_users), present=going_on, everyone=True)
        day += 1
    order = np.argsort(np.concatenate(rows), kind="stable")  # a user's clicks came in time order
    bounds = np.cumsum(counts)[:-1]
    per_user = [np.split(np.concatenate(column)[order], bounds) for column in (items, times)]
    return LongUsers(
        world.items.content.astype(np.float32),
        [one[:num_events].astype(np.int64) for one in per_user[0]],
        [one[:num_events] for one in per_user[1]],
        [np.unique(one[num_events:need]) for one in per_user[0]],
    )


def movielens_users(folder: Path, min_events: int, target_share: float, width: int, seed: int) -> LongUsers:
    """Users with at least ``min_events`` ratings of 4 or 5; the last ``target_share`` of them are to be found."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "interactions.parquet", columns=["user_id", "item_id", "rating", "timestamp"])
    user, item, rating, time = (table[name].to_numpy() for name in ("user_id", "item_id", "rating", "timestamp"))
    keep = np.flatnonzero(rating >= 4)
    keep = keep[np.lexsort((time[keep], user[keep]))]
    user, time = user[keep], time[keep]
    keys, item = np.unique(item[keep], return_inverse=True)
    _, starts, counts = np.unique(user, return_index=True, return_counts=True)
    long = counts >= min_events
    pairs = np.zeros((int((~long).sum()), len(keys)), dtype=np.float32)
    for row, person in enumerate(np.flatnonzero(~long)):
        pairs[row, item[starts[person] : starts[person] + counts[person]]] = 1
    share = pairs.sum(axis=0) + 1
    scaled = pairs / np.sqrt(share) / np.sqrt(pairs.sum(axis=1, keepdims=True))
    values, basis = np.linalg.eigh(scaled.T @ scaled)
    vectors = basis[:, ::-1][:, 1 : width + 1] * np.sqrt(np.maximum(values[::-1][1 : width + 1], 0))  # 0: popularity
    vectors /= np.sqrt(np.square(vectors).mean(axis=1, keepdims=True)) + 1e-3
    histories, times, targets = [], [], []
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(long))
    for person in chosen:
        part = slice(starts[person], starts[person] + counts[person])
        cut = round((1 - target_share) * counts[person])
        histories.append(item[part][:cut].astype(np.int64))
        times.append(time[part][:cut].astype(np.int64))
        targets.append(np.unique(item[part][cut:]))
    return LongUsers(vectors.astype(np.float32), histories, times, targets)


def newest(history: NDArray, number: int) -> Tokens:
    """The last ``number`` events; a repeated item counts as often as it is there, as for the others."""
    return everything(history[-number:])


def newest_items(history: NDArray, number: int) -> Tokens:
    """The last ``number`` *different* items, each once: as many tokens, from a longer past."""
    reverse = history[::-1]
    _, first = np.unique(reverse, return_index=True)
    ids = reverse[np.sort(first)[:number]]
    return ids, np.ones(len(ids), dtype=np.int64)


def everything(history: NDArray) -> Tokens:
    return np.unique(history, return_counts=True)


def recall(vectors: NDArray, tokens: Tokens, targets: NDArray, top: int, beta: float, gamma: float, seen: Any) -> float:
    """Share of the targets among the ``top`` best items; ``seen`` items are not answered (None: all may be)."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    ids, place = np.unique(tokens[0], return_inverse=True)  # tokens of one item add up: the sum over tokens, faster
    weights = np.bincount(place, weights=np.asarray(tokens[1], dtype=np.float64) ** gamma).astype(np.float32)
    similarity = unit @ unit[ids].T  # (N, T)
    similarity -= 1
    similarity *= np.float32(beta)
    np.exp(similarity, out=similarity)
    scores = similarity @ weights
    if seen is not None:
        scores[seen] = -np.inf
    best = np.argpartition(-scores, top)[:top]
    return float(np.isin(targets, best).mean())
