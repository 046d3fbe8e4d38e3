"""What a method works with in one step: the policy with gradient, the engine's snapshot of it, rollouts and rewards.

The policy is in evaluation mode here: dropout would make the ratio of new to recorded probabilities noise.
Rollouts come from the engine, whose weights are a snapshot at most ``snapshot_every`` steps old, and carry versions
that are checked before anything is learned from them.

Shape legend: B requests · G members of a group · L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sidera.align.config import AlignConfig
from sidera.align.rewards import Reward, RewardBatch, Rewards
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.items import ItemTable
from sidera.decode.sample import free_log_probs, masked_log_probs
from sidera.engine.recommender import Recommender
from sidera.engine.rollouts import RolloutMode
from sidera.fit import distributed
from sidera.fit.seeding import step_seed
from sidera.roles import Context, Generator, Rollout


class RewardFailed(InputError):
    """The reward raised, or answered something that no policy can learn from."""


@dataclass(frozen=True)
class Outcome:
    """What a method made of a step."""

    loss: Tensor  # () this rank's part of a mean over the requests of all ranks
    figures: Mapping[str, float] = field(default_factory=dict)  # for the log and the gates


@dataclass
class AlignStep:
    """One step's requests; everything is computed on demand.

    Under ``torchrun`` each of n ranks has every n-th request. Draws and means are those of all requests in one process.
    """

    policy: Generator  # trained; its context has a gradient
    engine: Recommender  # answers with a snapshot of the policy
    reward: Reward | None
    config: AlignConfig
    batch: Batch  # B requests
    number: int  # of the batch, which decides all draws

    @cached_property
    def read(self) -> Batch:
        """The requests as the policy reads them; rewards read ``batch``."""
        return read_requests(self.engine, self.batch)

    @cached_property
    def context(self) -> Context:
        return self.policy.context(self.read)

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed(0))

    def draw(self, of: Callable[..., Tensor]) -> Tensor:
        """What ``of(rows, generator=...)`` draws for these requests, on the CPU: pairs, format members."""
        rank, ranks = self.part
        return of(self.batch.num_histories * ranks, generator=self._generator)[rank::ranks]

    @property
    def part(self) -> tuple[int, int]:
        return distributed.rank(), distributed.world_size()

    def total(self, own: Tensor | int) -> float:
        """Of a count, over all ranks. All of them have to ask."""
        return sum(row[0] for row in distributed.gather([float(own)]))

    @property
    def items(self) -> ItemTable:
        return self.engine.catalog.items

    def seed(self, use: int) -> int:
        return step_seed(self.config.seed, self.number, use)

    def rollout(self, mode: RolloutMode, count: int, use: int = 1) -> Rollout:
        """(B, count) from the engine; ``use`` tells apart the rollouts of one step."""
        found = self.engine.rollout(self.read, count, mode, self.config.temperature, self.seed(use), self.part)
        catalog = self.engine.catalog
        found.check(self.engine.version, catalog.codebook_id, catalog.items_version)
        return found

    def log_probs(self, sids: Tensor, mode: RolloutMode) -> Tensor:
        """(B, G, L) under the policy, with gradient, normalised as a rollout of ``mode``."""
        temperature = self.config.temperature
        if mode == "free":
            return free_log_probs(self.policy, self.context, sids, temperature)
        return masked_log_probs(self.policy, self.context, sids, self.engine.catalog.trie, temperature)

    def old_log_probs(self, sids: Tensor) -> Tensor:
        """(B, G, L) under the snapshot, normalised inside the trie."""
        return self.engine.sid_log_probs(self.read, sids, "masked", self.config.temperature)

    def rewards(self, rollout: Rollout) -> Rewards:
        """(B, G); RewardFailed, in one line, for whatever goes wrong in it."""
        if self.reward is None:
            raise InputError(f"method {self.config.method!r} needs a reward", fix="give align(..., reward=...)")
        try:
            with torch.no_grad(), torch.autocast(torch.device(self.engine.device).type, enabled=False):
                found = self.reward(RewardBatch(self.batch, rollout.item_ids))
        except Exception as error:  # a reward is somebody else's code: whatever it raises is named
            raise RewardFailed(f"the reward raised {type(error).__name__}: {error}") from error
        if found.total.shape != rollout.item_ids.shape:
            shape, wanted = tuple(found.total.shape), tuple(rollout.item_ids.shape)
            raise RewardFailed(f"the reward has shape {shape}", allowed=f"{wanted}, one number an item")
        return found


def read_requests(engine: Recommender, batch: Batch) -> Batch:
    """Requests as the engine's model reads them; InputError where it can read nothing of one."""
    read = engine.reading.cut(batch)
    empty = int((read.lengths == 0).sum())
    if empty:
        problem = f"{empty} of {batch.num_histories} requests have nothing that the model reads"
        raise InputError(problem, fix="take requests from align.sources.requests, which leaves them out")
    return read


def reward_figures(rewards: Rewards, legal_mask: Tensor) -> dict[str, float]:
    """Means over what was an item: the total and every part."""
    figures = {"reward": _mean(rewards.total, legal_mask)}
    figures |= {f"reward_{name}": _mean(part, legal_mask) for name, part in rewards.parts.items()}
    return figures


def drift_figures(log_p: Tensor, log_old: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the policy went from what wrote the rollout: quantiles of the items' ratios, and KL(old, new) in nats.

    log_p, log_old (B, G, L), mask (B, G). The KL estimate r - 1 - log r is never negative and unbiased on own samples.
    """
    gap = (log_p - log_old).detach()[mask].sum(-1).double()
    if not gap.numel():
        return {}
    ratio = gap.exp()
    return {
        "ratio_q50": float(ratio.quantile(0.5)),
        "ratio_q99": float(ratio.quantile(0.99)),
        "ratio_max": float(ratio.max()),
        "kl": float((ratio - 1 - gap).mean()),
    }


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().mean()) if mask.any() else float("nan")
