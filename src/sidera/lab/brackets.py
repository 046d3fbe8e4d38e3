"""Policies that bracket the scale of an online test: random, popularity, the logger itself, and oracles.

Random and popularity see what any policy sees. The logger and the oracles get the users themselves
(``choose_with_truth``), which no learnt policy does: an oracle knows taste, mood, quality and clickbait.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.lab.policy import Requests
from sidera.sim.feedback import click_logit, satisfaction_mean
from sidera.sim.items import Ids
from sidera.sim.logging_policy import Logger
from sidera.sim.portable import Floats, sigmoid
from sidera.sim.randomness import Bits, below, bits, bits_table, keys, mix
from sidera.sim.users import Rows, Users
from sidera.sim.world import World

ORACLE_CHUNK = 256  # users scored against all items at once

Goal = Literal["utility", "watch_time", "click"]


@runtime_checkable
class Insider(Protocol):
    """A policy of the simulation's own, which sees the users as they are."""

    def choose_with_truth(self, world: World, users: Users, rows: Rows, day: int, request_keys: Bits) -> Ids:
        """(n, slate_size) items for each of ``rows``."""


class RandomPolicy:
    """Any items, all equally likely, distinct within a slate; decided by (seed, user, moment)."""

    def __init__(self, num_items: int, seed: int = 0) -> None:
        self.num_items, self.seed = num_items, seed

    def __call__(self, requests: Requests) -> NDArray[np.int64]:
        k = min(requests.k, self.num_items)
        own = mix(keys(self.seed, "random", requests.user_ids) ^ requests.as_of.astype(np.uint64))
        edges = np.arange(k + 1, dtype=np.int64) * self.num_items // k
        positions = below(bits_table(own, 1, k), np.diff(edges)) + edges[:-1]
        return (positions + below(bits(own, 0), self.num_items)[:, None]) % self.num_items


class PopularityPolicy:
    """The items with the highest counts that the user has not been shown yet, the same for everybody."""

    def __init__(self, counts: NDArray[np.integer]) -> None:
        self.ranking = np.argsort(-counts.astype(np.int64), kind="stable")

    def __call__(self, requests: Requests) -> list[list[int]]:
        answers = []
        for seen in requests.histories(None):
            reach = self.ranking[: len(seen) + requests.k]  # enough even if all of it was seen
            answers.append(reach[~np.isin(reach, seen)][: requests.k].tolist())
        return answers


class LoggerPolicy:
    """The policy that wrote the log, going on as before."""

    def __init__(self) -> None:
        self._of_day: tuple[int, Logger] | None = None

    def choose_with_truth(self, world: World, users: Users, rows: Rows, day: int, request_keys: Bits) -> Ids:
        if self._of_day is None or self._of_day[0] != day:
            self._of_day = (day, Logger(world, day))
        return self._of_day[1].slate(users, rows, request_keys).item_ids


class OraclePolicy:
    """Greedy with the truth: the best expected utility, watch time or click of the next item, for every slot at once.

    ``strength`` below 1 mixes the truth with noise of the same spread: a stand-in for policies of known quality.
    """

    def __init__(self, goal: Goal = "utility", strength: float = 1.0, seed: int = 0) -> None:
        if goal not in ("utility", "watch_time", "click"):
            raise InputError(f"oracle goal {goal!r} is not known", allowed="utility, watch_time, click")
        if not 0 <= strength <= 1:
            raise InputError(f"oracle strength = {strength} is out of range", allowed="a share from 0 to 1")
        self.goal, self.strength, self.seed = goal, strength, seed

    def choose_with_truth(self, world: World, users: Users, rows: Rows, day: int, request_keys: Bits) -> Ids:
        size = world.config.slate_size
        chosen = np.empty((len(rows), size), dtype=np.int32)
        for start in range(0, len(rows), ORACLE_CHUNK):
            part = rows[start : start + ORACLE_CHUNK]
            value = expected(world, users, part, self.goal)  # (n, N)
            if self.strength < 1:
                noise = _noise(mix(request_keys[start : start + ORACLE_CHUNK] + np.uint64(self.seed)), value.shape[1])
                spread = value.std(axis=1, keepdims=True)
                value = np.float32(self.strength) * value + np.float32(1 - self.strength) * spread * noise
            best = np.argpartition(-value, min(size, value.shape[1] - 1), axis=1)[:, :size]
            order = np.argsort(-np.take_along_axis(value, best, axis=1), axis=1, kind="stable")
            chosen[start : start + ORACLE_CHUNK, : best.shape[1]] = np.take_along_axis(best, order, axis=1)
            chosen[start : start + ORACLE_CHUNK, best.shape[1] :] = -1
        return chosen


def expected(world: World, users: Users, rows: Rows, goal: Goal) -> Floats:
    """(n, N): what every item would be worth to each user as the next one, noise left out."""
    items, config = world.items, world.config
    now = users.taste[rows] + users.drift[rows] - np.float32(config.satiation_weight) * users.satiation[rows]  # (n, K)
    liking: Floats = now[:, items.topic] * items.main_weight  # (n, N)
    liking += now[:, items.second_topic] * items.second_weight
    liking += users.subtopic_taste[rows][:, items.subtopic] * items.main_weight
    liking += np.float32(config.home_bonus) * (users.region[rows, None] == items.region).astype(np.float32)
    each = np.arange(len(rows))[:, None]
    counts = np.zeros((len(rows), config.num_creators + 1), dtype=np.float32)  # the last column: no creator yet
    np.add.at(counts, (each, users.recent_creators[rows]), np.float32(1))
    liking -= np.float32(config.creator_satiation) * counts[:, items.creator]
    seen = np.zeros((len(rows), items.num_items + 1), dtype=np.float32)
    seen[each, users.recent_items[rows]] = config.repeat_penalty
    liking -= seen[:, :-1]
    chance = sigmoid(click_logit(liking, items.quality, items.clickbait, config))
    if goal == "click":
        return chance
    satisfaction = satisfaction_mean(liking, items.quality, items.clickbait, config)
    if goal == "utility":
        return chance * sigmoid(np.float32(config.utility_slope) * satisfaction)
    logit = np.float32(config.watch_bias) + np.float32(config.watch_satisfaction) * satisfaction
    return chance * items.duration * sigmoid(logit - np.float32(config.watch_duration) * items.log_duration)


def _noise(own: Bits, count: int) -> Floats:
    """(n, count) numbers of mean 0 and spread 1."""
    words = bits_table(own, 0, count)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24 * 12**0.5) - np.float32(3**0.5)
