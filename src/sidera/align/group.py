"""Group policy gradients: roll out, reward, compare inside the group, and follow GRPO, ECPO or GBPO.

Beside the main group runs the format reward of OneRec's technical report (2506.13695, 4.2.3): a few *free* rollouts of
each request, +1 where they are legal, nothing where they are not, under the same surrogate. Without it (and without
the next-token loss) an update that is masked like its rollout never sees illegal probability, which then grows:
docs/understand/alignment.md.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sidera.align.config import AlignConfig
from sidera.align.objectives import (
    SURROGATES,
    Surrogate,
    ecpo,
    format_advantages,
    group_advantages,
    grpo,
    policy_loss,
)
from sidera.align.step import AlignStep, Outcome, drift_figures, reward_figures
from sidera.roles import Rollout


def surrogate_of(name: str, config: AlignConfig) -> Surrogate:
    """The surrogate with the config's constants."""
    if name == "grpo":
        return partial(grpo, clip=config.clip)
    if name == "ecpo":
        return partial(ecpo, clip=config.clip, delta=config.delta)
    return SURROGATES[name]


def group_policy_gradient(step: AlignStep, name: str) -> Outcome:
    """One step of the surrogate ``name`` on fresh rollouts."""
    config, surrogate = step.config, surrogate_of(name, step.config)
    rollout = step.rollout(config.rollout, config.group)
    rewards = step.rewards(rollout)
    advantages = group_advantages(rewards.total, rollout.legal_mask)
    log_p = step.log_probs(rollout.sids, rollout.mode)  # type: ignore[arg-type]
    count = step.total(advantages.mask.sum())
    loss = policy_loss(surrogate, log_p, rollout.log_probs, advantages.values, advantages.mask, config.level, count)
    figures = reward_figures(rewards, rollout.legal_mask)
    figures |= {
        "zero_advantage": advantages.zero_share,
        "legal": float(rollout.legal_mask.float().mean()),
        "policy_loss": float(loss.detach()) * step.part[1],
    }
    figures |= drift_figures(log_p, rollout.log_probs, rollout.legal_mask)
    if config.format_weight:
        extra, share = format_loss(step, surrogate, rollout)
        loss = loss + config.format_weight * extra
        figures["format_legal"] = share
    return Outcome(loss, figures)


def format_loss(step: AlignStep, surrogate: Surrogate, rollout: Rollout) -> tuple[Tensor, float]:
    """() loss that raises what is legal among random free rollouts, and the share that was legal.

    Members of a free main group are used again; otherwise a few free rollouts are drawn for it.
    """
    config = step.config
    if rollout.mode == "free":
        uniforms = step.draw(lambda rows, **options: torch.rand(rows, rollout.legal_mask.shape[1], **options))
        values, mask = format_advantages(rollout.legal_mask, config.format_members, uniforms)
        free = rollout
    else:
        free = step.rollout("free", config.format_members, use=2)
        values, mask = free.legal_mask.float(), free.legal_mask
    share = float(free.legal_mask.float().mean())
    count = step.total(mask.shape[0] * min(config.format_members, mask.shape[1]))
    if not mask.any():
        return torch.zeros((), device=mask.device), share
    log_p = step.log_probs(free.sids, "free")
    # the mean is over all members that were looked at: where little is legal, little is learned from it
    return policy_loss(surrogate, log_p, free.log_probs, values, mask, config.level, count), share
