"""Rewards: what an alignment step asks about the items that a policy wrote, and how it is answered.

    p_score = NetworkReward(network)                        # the fused score of a trained P-Score
    staying = NetworkReward(network, {"stays": 1, "returns": 1})
    reward = Together({"p_score": (1.0, p_score), "staying": (0.3, staying)})
    answer = reward(RewardBatch(batch, item_ids))           # answer.total (B, G), answer.parts by name

A reward's network is a ranker under ``models/``; here is its use. Every reward reports the parts that its total is made
of, because a total that rises says nothing about which part was hacked. :class:`Together` checks each member: what
raises, is no number, or tells no item from another for several steps running ends the run with the reward's name.

Shape legend: B requests · G items written for each request, -1 where a free rollout wrote codes of no item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.fit.protocols import restore, states

FLAT = 1e-7  # a spread inside every group below this tells no item from another
CHUNK = 1 << 15  # items scored in one pass; bounds memory, not results


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


class NetworkReward:
    """What a trained ranker says: its main task (a P-Score's fused score), another one, or a weighted sum of several.

    One task alone is the textbook way to be hacked (docs/understand/alignment.md); it is allowed to show that.
    """

    def __init__(self, network: Any, weights: Mapping[str, float] | None = None) -> None:
        self.network, self.weights = network.eval(), dict(weights or {network.tasks[0]: 1.0})
        for name in self.weights:
            if name not in network.tasks:
                raise InputError(f"the reward names the task {name!r}", allowed=", ".join(network.tasks))

    @torch.inference_mode()
    def __call__(self, asked: RewardBatch) -> Rewards:
        there_mask = asked.item_ids >= 0
        step = max(1, CHUNK // max(1, asked.item_ids.shape[1]))
        answers = []
        for low in range(0, asked.batch.num_histories, step):
            high = min(low + step, asked.batch.num_histories)
            context = self.network.context(asked.batch.cut(low, high).newest(self.network.reads.max_events))
            answers.append(self.network.score(context, asked.item_ids[low:high].clamp(min=0)))
        scores = torch.cat(answers).float() * there_mask[..., None]  # (B, G, tasks)
        parts = {name: scores[..., self.network.tasks.index(name)] for name in self.weights}
        total = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum(0)
        return Rewards(total, parts)


class Together:
    """A weighted sum of named rewards, each of them checked."""

    def __init__(self, members: Mapping[str, tuple[float, Reward]], patience: int = 3) -> None:
        """``patience``: steps in a row for which a member may give all items of every group the same number."""
        if not members:
            raise InputError("no reward is named", allowed="one or more")
        self.members, self.patience = dict(members), patience
        self.flat_for = dict.fromkeys(members, 0)

    def __call__(self, asked: RewardBatch) -> Rewards:
        total = torch.zeros(asked.item_ids.shape, device=asked.item_ids.device)
        parts: dict[str, Tensor] = {}
        for name, (weight, reward) in self.members.items():
            found = self._checked(name, reward, asked)
            total = total + weight * found.total
            parts[name] = found.total
            parts |= {f"{name}/{part}": values for part, values in found.parts.items() if len(found.parts) > 1}
        return Rewards(total, parts)

    def state(self) -> Mapping[str, Any]:
        """The counters, and what the members keep."""
        return {"flat_for": dict(self.flat_for), **states({name: member for name, (_, member) in self.members.items()})}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.flat_for = dict(state["flat_for"])
        restore({name: member for name, (_, member) in self.members.items()}, state)

    def _checked(self, name: str, reward: Reward, asked: RewardBatch) -> Rewards:
        try:
            found = reward(asked)
        except Exception as error:
            problem = error.problem if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise InputError(f"reward {name!r} failed: {problem}", fix=f"mend {name!r} or leave it out") from error
        shape, wanted = tuple(found.total.shape), tuple(asked.item_ids.shape)
        if shape != wanted:
            raise InputError(f"reward {name!r} has shape {shape}", allowed=f"{wanted}, a number an item")
        if not found.total.isfinite().all():
            row, column = (~found.total.isfinite()).nonzero()[0].tolist()
            raise InputError(
                f"reward {name!r} of request {row}, item {column} is {float(found.total[row, column])}",
                allowed="finite numbers", fix=f"train the network of {name!r} again, or leave it out",
            )  # fmt: skip
        self._check_flat(name, found.total, asked.item_ids >= 0)
        return found

    def _check_flat(self, name: str, total: Tensor, there_mask: Tensor) -> None:
        """A reward that says the same of everything teaches nothing, silently: groups are compared inside."""
        compared = there_mask.sum(1) >= 2
        if not compared.any():
            return
        high = total.masked_fill(~there_mask, float("-inf")).amax(1)
        low = total.masked_fill(~there_mask, float("inf")).amin(1)
        flat = bool(((high - low)[compared] < FLAT).all())
        self.flat_for[name] = self.flat_for[name] + 1 if flat else 0
        if self.flat_for[name] >= self.patience:
            raise InputError(
                f"reward {name!r} gave all items of every group the same number for {self.patience} steps",
                allowed="numbers that differ inside a group",
                fix=f"check what {name!r} reads, or leave it out",
            )
