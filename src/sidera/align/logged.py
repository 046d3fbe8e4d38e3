"""Learning from logged feedback instead of rollouts: GBPO on what users were shown (OneRec-V2, 2508.20900, 4.2).

Every logged exposure of a request is an action; a long view is worth +1, a dislike -1, the rest is dropped. Who wrote
the log decides pi_old: per-token log-probabilities recorded at exposure (columns ``log_prob_0``, ``log_prob_1``, ... of
``Targets.feedback``) where the log has them, sg(pi) where it has not. With sg(pi) the ratio is 1 and no clip ever
acts: a plain policy gradient then digs for ever below logged negatives, GBPO stops as in binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sidera.align.group import surrogate_of
from sidera.align.objectives import policy_loss
from sidera.align.step import AlignStep, Outcome, drift_figures
from sidera.core import InputError
from sidera.ops.jagged import Jagged


def logged_policy_gradient(step: AlignStep, name: str) -> Outcome:
    """One step of the surrogate ``name`` on logged exposures."""
    config, batch = step.config, step.batch
    targets = batch.targets_of("exposure", "request")
    worth = feedback_advantages(targets.feedback, config.positive, config.negative)  # (targets,)
    sids, target_mask = Jagged(batch.items.codes[targets.items], targets.offsets).pad()  # (B, G, L), (B, G)
    advantage, _ = Jagged(worth, targets.offsets).pad()
    log_p = step.log_probs(sids, "masked")
    mask = target_mask & (advantage != 0) & log_p.detach().isfinite().all(-1)  # items that left are not learned from
    recorded = _recorded(targets.feedback, sids.shape[2])
    log_old = log_p.detach() if recorded is None else Jagged(recorded, targets.offsets).pad()[0]
    count = step.total(mask.sum())
    loss = policy_loss(surrogate_of(name, config), log_p, log_old, advantage, mask, config.level, count)
    figures = {
        "zero_advantage": 1 - float(mask.any(1).float().mean()),
        "positives": float((advantage[mask] > 0).float().mean()) if mask.any() else float("nan"),
        "least_log_p": float(log_p.detach()[mask].min()) if mask.any() else float("nan"),
    }
    return Outcome(loss, figures | drift_figures(log_p, log_old, mask))


def feedback_advantages(feedback: Mapping[str, Tensor], positive: str, negative: str) -> Tensor:
    """(targets,) +1, -1 or 0; a log without the ``negative`` column has no -1."""
    if positive not in feedback:
        there = ", ".join(feedback) or "none"
        raise InputError(f"[align] positive = {positive!r} is not in the log", allowed=f"its feedback columns: {there}")
    good = feedback[positive] > 0
    bad = feedback[negative] > 0 if negative in feedback else torch.zeros_like(good)
    return (good & ~bad).float() - bad.float()


def _recorded(feedback: Mapping[str, Tensor], num_levels: int) -> Tensor | None:
    """(targets, L) log-probabilities of the exposures when they were shown, if the log has them."""
    names = [f"log_prob_{level}" for level in range(num_levels)]
    if not all(name in feedback for name in names):
        return None
    recorded = torch.stack([feedback[name] for name in names], dim=1)
    if not recorded.isfinite().all() or bool((recorded > 0).any()):
        raise InputError("recorded log-probabilities hold numbers above 0 or none at all", allowed="finite, 0 or less")
    return recorded
