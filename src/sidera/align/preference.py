"""Preference losses: DPO on self-hard pairs (IPA), S-DPO, and SPRec's self-play.

The reference of every log-ratio is the engine's snapshot, so it moves on with the run as in iterated DPO (OneRec v1,
2502.18965, 3.4: the next model learns from the last one's beam). A long ``snapshot_every`` makes it DPO with a fixed
reference.

Trap: DPO lowers the probability of chosen items too, as long as that of rejected ones falls faster; the next-token
loss beside it is what prevents that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.align.objectives import dpo, s_dpo, self_hard_pairs
from sidera.align.step import AlignStep, Outcome, reward_figures


def self_hard_dpo(step: AlignStep) -> Outcome:
    """IPA: the best against the worst of the model's own rollouts, by the reward."""
    rollout = step.rollout(step.config.rollout, step.config.group)
    rewards = step.rewards(rollout)
    best, worst, there = self_hard_pairs(rewards.total, rollout.legal_mask)
    pair = torch.stack([best, worst], dim=1)  # (B, 2)
    places = pair[..., None].expand(-1, -1, rollout.sids.shape[2])
    new = step.log_probs(rollout.sids.gather(1, places), rollout.mode).sum(-1)[there]  # type: ignore[arg-type]
    old = rollout.log_probs.gather(1, places).sum(-1)[there]
    loss = dpo(new[:, 0], new[:, 1], old[:, 0], old[:, 1], step.config.beta, step.total(there.sum()))
    figures = reward_figures(rewards, rollout.legal_mask)
    figures |= {"zero_advantage": 1 - float(there.float().mean()), **_ratios(new, old)}
    return Outcome(loss, figures)


def softmax_dpo(step: AlignStep) -> Outcome:
    """S-DPO: a logged positive against random items."""
    chosen = logged_positives(step)
    number = step.config.rejected
    size = step.items.num_items
    rejected = step.draw(lambda rows, **options: torch.randint(size, (rows, number), **options))
    return _chosen_against(step, chosen, rejected.to(chosen.device))


def self_play(step: AlignStep) -> Outcome:
    """SPRec (2412.09243): a logged positive against what the model itself would recommend.

    The paper alternates epochs of next tokens and of DPO; here both losses stand in every step.
    """
    chosen = logged_positives(step)
    rollout = step.rollout(step.config.rollout, max(2, step.config.rejected))
    return _chosen_against(step, chosen, rollout.item_ids)


def _chosen_against(step: AlignStep, chosen: Tensor, rejected: Tensor) -> Outcome:
    """chosen (B,), rejected (B, n) item ids, -1 for none."""
    sids = step.items.codes_of(torch.cat([chosen[:, None], rejected.clamp(min=0)], dim=1))  # (B, 1 + n, L)
    new = step.log_probs(sids, "masked").sum(-1)
    old = step.old_log_probs(sids).sum(-1)
    there = (rejected >= 0) & new[:, 1:].isfinite() & old[:, 1:].isfinite() & (rejected != chosen[:, None])
    there &= (new[:, :1].isfinite()) & (old[:, :1].isfinite())  # a chosen item that left the catalogue
    missing = ~torch.cat([there.any(1, keepdim=True), there], dim=1)
    new, old = new.masked_fill(missing, 0.0), old.masked_fill(missing, 0.0)
    kept = there.any(1)
    loss = s_dpo(new[:, 0], new[:, 1:], old[:, 0], old[:, 1:], step.config.beta, there, step.total(kept.sum()))
    first = torch.stack([new[:, 0], (new[:, 1:] * there).sum(1) / there.sum(1).clamp(min=1)], dim=1)[kept]
    before = torch.stack([old[:, 0], (old[:, 1:] * there).sum(1) / there.sum(1).clamp(min=1)], dim=1)[kept]
    return Outcome(loss, {"zero_advantage": 1 - float(kept.float().mean()), **_ratios(first, before)})


def logged_positives(step: AlignStep) -> Tensor:
    """(B,) one target of each request, any if it has several."""
    batch = step.batch
    targets = batch.targets_of("history", "request")
    if targets.kind == "history":
        return batch.target_ids
    counts = targets.lengths
    position = (step.draw(torch.rand).to(counts.device) * counts).long()
    return batch.target_ids[targets.offsets[:-1] + torch.minimum(position, counts - 1)]


def _ratios(new: Tensor, old: Tensor) -> dict[str, float]:
    """Mean log-ratios to the snapshot: chosen should rise, not only rejected fall. new, old (E, 2)."""
    if not len(new):
        return {}
    chosen, rejected = (new - old).detach().mean(0).tolist()
    return {"chosen_log_ratio": chosen, "rejected_log_ratio": rejected}
