"""Rewards: what an alignment step asks about the items that a policy wrote, and how it is answered.

    reward = Weighted({"p_score": PScoreReward(network), "session": SessionValueReward(value)}, weights)
    answer = reward(RewardBatch(batch, item_ids))        # answer.total (B, G), answer.parts by name

A reward's network is a ranker under ``models/``; here is its use. Every reward reports the parts that its total is made
of, because a total that rises says nothing about which part was hacked.

Shape legend: B requests · G items written for each request, -1 where a free rollout wrote codes of no item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sidera.core import Batch


@dataclass(frozen=True)
class RewardBatch:
    """What one update asks the rewards about."""

    batch: Batch  # B requests: histories with feedback, profiles, as_of
    item_ids: Tensor  # (B, G) int64, -1 where a free rollout wrote no item


@dataclass(frozen=True)
class Rewards:
    """The answer. Items that are none have a total of 0 and are left out of the group's mean by the caller."""

    total: Tensor  # (B, G) float32, NaN-free
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (B, G), what total is made of


class Reward(Protocol):
    """A number for each item of each request."""

    def __call__(self, asked: RewardBatch) -> Rewards: ...
