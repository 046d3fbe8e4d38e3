"""Targets that are distributions: label smoothing, and what teachers say.

Shape legend: R rows · C children, some absent (their logit is -inf).
"""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logits_RC: Tensor, probs_RC: Tensor) -> Tensor:
    """Sum over rows of -sum p log softmax(logits); an absent child has no part in it."""
    log_p = logits_RC.log_softmax(1).masked_fill(logits_RC.isinf(), 0.0)
    return -(probs_RC * log_p).sum()


def uniform(logits_RC: Tensor) -> Tensor:
    """(R, C) the same probability for every child that is there."""
    there = (~logits_RC.isinf()).to(logits_RC.dtype)
    return there / there.sum(1, keepdim=True)
