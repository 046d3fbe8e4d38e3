"""Objectives of alignment as plain tensor functions: surrogates of a policy gradient, preference losses, advantages.

A *surrogate* takes log-probabilities under the policy, those recorded at the rollout, and advantages, all of one
shape, and gives an element-wise quantity whose gradient is what the method follows upwards. Per token the shape
is (B, G, L); per item the log-probabilities are summed over codes first (:func:`policy_loss` does either).

| function | source |
|---|---|
| :func:`policy_gradient` | REINFORCE; with logged actions it is what others reduce to when pi_old = sg(pi) |
| :func:`grpo` | PPO's clip (1707.06347) on group advantages (GRPO, 2402.03300) |
| :func:`ecpo` | OneRec technical report (2506.13695), section 4.2.2: the clip comes early, in the denominator |
| :func:`gbpo` | OneRec-V2 (2508.20900), section 4.2.2: denominators bounded as in binary cross-entropy |
| :func:`dpo` | 2305.18290; with self-hard pairs (:func:`self_hard_pairs`) it is IPA of OneRec v1 (2502.18965, 3.4) |
| :func:`s_dpo` | 2406.09215: a softmax over several rejected items |

Traps. A product of three small probabilities makes an item-level GBPO blind to negatives (1 - pi is 1): the paper's pi
is per token. A ratio may overflow to infinity under very old log-probabilities in :func:`grpo`; that is the method.
A place that is no item carries log-probability -inf: mask it *before* the arithmetic, or 0 * inf makes NaN.

Shape legend: B requests · G members of a group · L levels · E pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.core import InputError

Level = Literal["token", "item"]
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
STD_FLOOR = 1e-6  # a group whose rewards differ by less says nothing


def policy_gradient(log_p: Tensor, log_old: Tensor, advantage: Tensor) -> Tensor:
    """A log pi: the ratio is taken as 1."""
    return advantage * log_p


def grpo(log_p: Tensor, log_old: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """min(r A, clip(r, 1 - e, 1 + e) A) with r = pi / pi_old: unbounded where A < 0 and pi has grown."""
    ratio = (log_p - log_old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def ecpo(log_p: Tensor, log_old: Tensor, advantage: Tensor, clip: float = 0.2, delta: float = 0.1) -> Tensor:
    """GRPO whose pi_old is at least sg(pi) / (1 + clip + delta), so that no ratio exceeds that; its gradient lives."""
    floor = log_p.detach() - math.log(1 + clip + delta)
    return grpo(log_p, torch.maximum(log_old, floor), advantage, clip)


def gbpo(log_p: Tensor, log_old: Tensor, advantage: Tensor) -> Tensor:
    """r A with pi_old at least sg(pi) where A >= 0, at least 1 - sg(pi) where A < 0: never steeper than BCE."""
    now = log_p.detach()
    bound = torch.where(advantage >= 0, now, _log1m_exp(now))
    return (log_p - torch.maximum(log_old, bound)).exp() * advantage


SURROGATES: dict[str, Surrogate] = {"pg": policy_gradient, "grpo": grpo, "ecpo": ecpo, "gbpo": gbpo}


def policy_loss(
    surrogate: Surrogate, log_p: Tensor, log_old: Tensor, advantage: Tensor, mask: Tensor, level: Level = "token",
    count: float | None = None,
) -> Tensor:  # fmt: skip
    """() minus the mean surrogate over the members of ``mask``; log_p, log_old (B, G, L), advantage, mask (B, G).

    ``count``: what the sum is divided by, where the mean is one over more than these members (other processes').

    "token": the mean over codes, each with its own ratio; "item": one ratio an item. Where pi = pi_old an item's
    gradient is L times that of the token mean, so going from one to the other rescales the weight by L.
    """
    keep = mask[..., None]
    log_p, log_old = log_p.masked_fill(~keep, 0.0), log_old.masked_fill(~keep, 0.0)
    if level == "item":
        values = surrogate(log_p.sum(-1), log_old.sum(-1), advantage)  # (B, G)
    else:
        values = surrogate(log_p, log_old, advantage[..., None].expand_as(log_p)).mean(-1)
    return -_mean((values * mask).sum(), mask.sum(), count)


@dataclass(frozen=True)
class Advantages:
    """How much better than its group each member is."""

    values: Tensor  # (B, G) float32, 0 outside of the mask
    mask: Tensor  # (B, G) members that teach something
    zero_share: float  # of the groups: fewer than 2 legal members, or all rewards alike


def group_advantages(rewards: Tensor, legal_mask: Tensor) -> Advantages:
    """(r - mean) / std over the legal members of each group; a group without two of them or without spread is masked.

    rewards, legal_mask (B, G). InputError when a legal member's reward is not finite.
    """
    check_finite(rewards, legal_mask)
    count = legal_mask.sum(1, keepdim=True)  # (B, 1)
    known = rewards.double().masked_fill(~legal_mask, 0.0)
    mean = known.sum(1, keepdim=True) / count.clamp(min=1)
    distance = (known - mean).masked_fill(~legal_mask, 0.0)
    std = (distance.square().sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
    useful_mask = (count >= 2) & (std > STD_FLOOR * (1 + mean.abs()))
    mask = legal_mask & useful_mask
    values = (distance / std.clamp(min=STD_FLOOR)).masked_fill(~mask, 0.0)
    return Advantages(values.float(), mask, 1.0 - float(useful_mask.float().mean()))


def check_finite(rewards: Tensor, legal_mask: Tensor) -> None:
    """InputError naming the first reward of an item that is not finite."""
    bad_mask = ~rewards.isfinite() & legal_mask
    if bad_mask.any():
        row, column = bad_mask.nonzero()[0].tolist()
        raise InputError(
            f"the reward of request {row}, member {column} is {float(rewards[row, column])}",
            allowed="finite numbers",
            fix="mend the reward; nothing was learned from this step",
        )


def format_advantages(legal_mask: Tensor, members: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(B, G) advantage 1 and its mask: of ``members`` of each group, of least ``uniforms`` (B, G), the legal ones.

    Illegal ones are dropped, not punished. The members must be *random* ones of a free rollout: choosing the most
    likely teaches legality at the head only (technical report, 4.2.3).
    """
    order = uniforms.to(legal_mask.device).argsort(1)
    chosen_mask = torch.zeros_like(legal_mask).scatter(1, order[:, :members], True)
    mask = chosen_mask & legal_mask
    return mask.float(), mask


def dpo(
    chosen: Tensor, rejected: Tensor, chosen_old: Tensor, rejected_old: Tensor, beta: float, count: float | None = None
) -> Tensor:
    """() mean of -log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); log-probabilities of items (E,)."""
    margin = (chosen - chosen_old) - (rejected - rejected_old)
    return -_mean(F.logsigmoid(beta * margin).sum(), margin.numel(), count)


def s_dpo(
    chosen: Tensor, rejected: Tensor, chosen_old: Tensor, rejected_old: Tensor, beta: float, mask: Tensor | None = None,
    count: float | None = None,
) -> Tensor:  # fmt: skip
    """() mean of -log sigmoid(-log sum_n exp(beta (log-ratio of rejected n - log-ratio of chosen))).

    chosen (E,), rejected (E, n); ``mask`` (E, n) True = there. A row without any rejected item is left out.
    """
    mask = torch.ones_like(rejected, dtype=torch.bool) if mask is None else mask
    there = mask.any(1)
    rejected, rejected_old = rejected.masked_fill(~mask, 0.0), rejected_old.masked_fill(~mask, 0.0)
    gaps = beta * ((rejected - rejected_old) - (chosen - chosen_old)[:, None])
    gaps = gaps.masked_fill(~mask, float("-inf"))[there]
    return _mean(F.softplus(gaps.logsumexp(1)).sum(), len(gaps), count)


def self_hard_pairs(rewards: Tensor, legal_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best and the worst legal member of each group (B,), and which groups have two that differ (B,).

    IPA: both come from the model's own beam, which makes the rejected one hard.
    """
    check_finite(rewards, legal_mask)
    best = rewards.masked_fill(~legal_mask, float("-inf")).max(1)
    worst = rewards.masked_fill(~legal_mask, float("inf")).min(1)
    return best.indices, worst.indices, best.values - worst.values > STD_FLOOR


def _mean(total: Tensor, own: Tensor | int, count: float | None) -> Tensor:
    """() over ``count``, or over one's ``own`` members; 0 of none."""
    return total / max(1.0, float(own) if count is None else count)


def _log1m_exp(values: Tensor) -> Tensor:
    """log(1 - exp(values)) for values <= 0, without losing digits at either end; log(0) is held at -88."""
    values = values.clamp(max=-1e-7)  # float32: pi = 1 to the last digit
    small = values > -math.log(2)
    return torch.where(small, (-values.expm1()).log(), (-values.exp()).log1p())
