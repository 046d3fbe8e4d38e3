"""The policy whose exposures make the log: popularity plus a noisy idea of taste, and a marked uniform slice.

Per request ``num_candidates`` items are drawn without looking (a random rotation of the items alive, one candidate from
each of equal parts, so that they are distinct and every item is equally likely to be among them). They are ordered by
``score + Gumbel noise``, which is sampling without replacement from the softmax of the scores (Plackett-Luce; Kool et
al., "Stochastic beams and where to find them", 2019). Each slot is, by its own coin, uniform instead: an item drawn
from all that are alive, marked in the log.

Propensities are those of a slot given the ones above it, coin included in neither: uniform slots 1 / N alive; the
others (C / N) * P(item | candidates), the chance of a joint draw (candidates, item) against candidates drawn to hold
the item. Weighting by target / propensity is unbiased for the first of these slots though nobody can sum over candidate
sets, and for a slate the product over its slots is, up to the parts that candidates are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.sim.items import Ids
from sidera.sim.portable import Floats, exp, log
from sidera.sim.randomness import Bits, Purpose, below, bits, bits_table, low_uniform
from sidera.sim.users import Rows, Users
from sidera.sim.world import World


@dataclass(frozen=True)
class Slate:
    """What n users are shown in one request of S slots."""

    item_ids: Ids  # (n, S); -1: the slot is empty
    propensity: Floats  # (n, S); 0 where unknown
    uniform_mask: NDArray[np.bool_]  # (n, S)
    lost_mask: NDArray[np.bool_] | None = None  # (n,) users who got no answer at all


class Logger:
    """The logging policy of a world on one day."""

    def __init__(self, world: World, day: int) -> None:
        config, items = world.config, world.items
        self.config = config
        self.alive = items.order[: items.num_alive(day)]  # (N alive,)
        popularity = np.float32(config.popularity_weight) * items.popularity_on(day, config)
        # beside each other in memory, in the order that candidates are drawn in
        self.popularity = popularity[self.alive]
        weight = np.float32(config.taste_weight)
        self.main_weight = weight * items.main_weight[self.alive]
        self.second_weight = weight * items.second_weight[self.alive]
        self.topic = items.topic[self.alive].astype(np.int64)
        self.second_topic = items.second_topic[self.alive].astype(np.int64)

    def slate(self, users: Users, rows: Rows, request_keys: Bits) -> Slate:
        """Fill the slots of one request for each of ``rows``; ``request_keys`` (n,) are its random keys."""
        config, num_alive = self.config, len(self.alive)
        size = config.slate_size
        coins = low_uniform(bits_table(request_keys, Purpose.UNIFORM_SLOT, size))  # the upper bits draw the item
        uniform_mask = coins < np.float32(config.uniform_share)  # (n, S)
        uniform_positions = self._spread(request_keys, Purpose.UNIFORM_ITEM, size, Purpose.UNIFORM_SLOT)[0]  # (n, S)
        positions, words = self._spread(
            request_keys, Purpose.OFFSET, config.num_candidates, Purpose.CANDIDATE
        )  # (n, C)
        weights = exp(self.scores(users, rows, positions))  # (n, C)
        arrival_times = -log(low_uniform(words))  # exponential races: the smallest time / weight wins
        for slot in range(size):
            taken_mask = uniform_mask[:, slot, None] & (positions == uniform_positions[:, slot, None])
            weights[taken_mask] = 0
        total = np.zeros(len(rows), dtype=np.float32)
        for candidate in range(weights.shape[1]):  # one after the other: the sum's order is part of the result
            total += weights[:, candidate]
        races = arrival_times / np.maximum(weights, np.float32(1e-30))
        chosen_positions = uniform_positions.copy()
        propensity = np.full((len(rows), size), np.float32(1) / np.float32(num_alive), dtype=np.float32)
        everyone = np.arange(len(rows))
        drawn_share = np.float32(config.num_candidates) / np.float32(num_alive)
        for slot in range(size):
            best = races.argmin(axis=1)
            won = weights[everyone, best]
            ranked_mask = ~uniform_mask[:, slot]
            chosen_positions[:, slot] = np.where(ranked_mask, positions[everyone, best], chosen_positions[:, slot])
            chance = drawn_share * np.minimum(won / total, np.float32(1))
            propensity[:, slot] = np.where(ranked_mask, chance, propensity[:, slot])
            total = np.where(ranked_mask, np.maximum(total - won, np.float32(1e-20)), total)
            races[everyone, best] = np.where(ranked_mask, np.float32(np.inf), races[everyone, best])
        return Slate(self.alive[chosen_positions], propensity, uniform_mask)

    def scores(self, users: Users, rows: Rows, positions: NDArray[np.int64]) -> Floats:
        """(n, C) logits of candidates, which are positions in ``alive``."""
        estimate = users.estimate.ravel()
        base = (rows * users.estimate.shape[1])[:, None]
        result = estimate.take(base + self.topic.take(positions))
        result *= self.main_weight.take(positions)
        second = estimate.take(base + self.second_topic.take(positions))
        second *= self.second_weight.take(positions)
        result += second
        result += self.popularity.take(positions)
        return result

    def _spread(
        self, request_keys: Bits, offset: Purpose, count: int, counter: Purpose
    ) -> tuple[NDArray[np.int64], Bits]:
        """(n, count) distinct positions of ``alive``, each equally likely, and the random words that made them."""
        num_alive = len(self.alive)
        edges = np.arange(count + 1, dtype=np.int64) * num_alive // count
        words = bits_table(request_keys, counter, count)
        positions = below(words, np.diff(edges)) + edges[:-1]
        positions += below(bits(request_keys, offset), num_alive)[:, None]
        positions -= np.where(positions >= num_alive, num_alive, 0)
        return positions, words
