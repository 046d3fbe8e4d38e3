"""Off-policy estimates: what another policy would have earned, estimated from the log of this one.

Each logged choice has the chance ``propensity`` that the logging policy made it and the chance ``target`` that the
other policy would have. With w = target / propensity (Horvitz & Thompson 1952; Swaminathan & Joachims 2015; Dudík et
al. 2011):

    ips    mean of w r                      unbiased, and as noisy as the weights
    snips  sum of w r / sum of w            biased by 1/n, less noisy, never outside the range of r
    dr     mean of q(target) + w (r - q)    unbiased whatever the model q says; the better q, the less noisy

Intervals are by user (the rows of one user stand or fall together), from the linearised estimate.

Traps. (1) What the log never shows, no weight brings back: where the target policy chooses what the logger cannot
(cold items), all three are wrong and nothing in the data says so; ``covered`` (the mean of w, 1 in expectation where
all is supported) is the one hint. (2) A slate: the propensity of a slot is given the ones above it, so these estimates
hold for the first slot, or for slots that are drawn uniformly; a whole slate needs the product over its slots. (3)
Weights are heavy-tailed: with an effective sample of a few dozen the intervals of IPS and SNIPS are too narrow
(benchmarks/off_policy.py), and DR's hold only with a good q. (4) q fitted on what a logger chose is too high everywhere
else: the logger knows why it chose. Fit it on a uniform slice, on other users than those who made the target policy.
With such a q, ``cap`` = sqrt(n) (Ionides 2008) narrows DR at little bias; with a poor one it moves DR to q.

Shape legend: n logged choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidera.core import InputError
from sidera.eval.bootstrap import Estimate

WIDTH = 1.96  # standard errors on either side
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OffPolicy:
    """Estimates of the target policy's mean reward, each with its 95 % interval by user."""

    ips: Estimate
    snips: Estimate
    dr: Estimate | None  # None without a model
    logged: Estimate  # what the logging policy earned
    effective: float  # (sum of w)^2 / sum of w^2: choices that the estimate really rests on
    covered: float  # mean of w: near 1 where the log supports the target policy
    num_choices: int
    num_capped: int


def off_policy(
    reward: ArrayLike,
    propensity: ArrayLike,
    target: ArrayLike,
    user_ids: ArrayLike,
    *,
    model_logged: ArrayLike | None = None,
    model_target: ArrayLike | None = None,
    cap: float | None = None,
) -> OffPolicy:
    """All arrays (n,), one entry per logged choice.

    ``model_logged`` q of the logged choice; ``model_target`` the mean of q under the target policy, over all that it
    could choose. q must not have been fitted on these rows, or DR borrows their luck. ``cap``: the largest weight.
    """
    rewards, chances, targets = (np.asarray(values, dtype=np.float64) for values in (reward, propensity, target))
    users = np.asarray(user_ids)
    _check(rewards, chances, targets, users, cap)
    weights = targets / chances
    num_capped = 0
    if cap is not None:
        num_capped = int((weights > cap).sum())
        weights = np.minimum(weights, cap)
    if not weights.sum() > 0:
        raise InputError("the target policy would have made none of the logged choices", allowed="overlapping policies")
    dr = None
    if (model_logged is None) != (model_target is None):
        raise InputError("doubly robust needs the model twice", fix="give model_logged and model_target, or neither")
    if model_logged is not None and model_target is not None:
        guess, mean = np.asarray(model_logged, dtype=np.float64), np.asarray(model_target, dtype=np.float64)
        for name, values in (("model_logged", guess), ("model_target", mean)):
            if values.shape != rewards.shape or not np.isfinite(values).all():
                raise InputError(f"{name} has shape {values.shape} or holds NaN", allowed=f"{rewards.shape}, finite")
        dr = mean_by_user(mean + weights * (rewards - guess), users)
    return OffPolicy(
        ips=mean_by_user(weights * rewards, users),
        snips=mean_by_user(weights * rewards, users, weights),
        dr=dr,
        logged=mean_by_user(rewards, users),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
        covered=float(weights.mean()),
        num_choices=len(rewards),
        num_capped=num_capped,
    )


def mean_by_user(values: Floats, user_ids: NDArray, weights: Floats | None = None) -> Estimate:
    """sum of values / sum of weights (of rows without), with an interval that takes users as the sample.

    The ratio's influence of user u is (v_u - ratio * w_u) / mean w; its spread over users gives the standard error.
    """
    _, user_of_row = np.unique(user_ids, return_inverse=True)
    totals = np.bincount(user_of_row, weights=values)
    sizes = np.bincount(user_of_row, weights=weights) if weights is not None else np.bincount(user_of_row).astype(float)
    ratio = totals.sum() / sizes.sum()
    number = len(totals)
    if number < 2:
        return Estimate(float(ratio), float("-inf"), float("inf"))
    error = np.sqrt(((totals - ratio * sizes) ** 2).sum() / (number - 1) / number) / sizes.mean()
    return Estimate(float(ratio), float(ratio - WIDTH * error), float(ratio + WIDTH * error))


def _check(rewards: Floats, chances: Floats, targets: Floats, users: NDArray, cap: float | None) -> None:
    if not len(rewards):
        raise InputError("no logged choice to estimate from", allowed="1 or more")
    for name, values in (("propensity", chances), ("target", targets), ("user_ids", users)):
        if values.shape != rewards.shape:
            raise InputError(f"{name} has shape {values.shape} for {len(rewards)} rewards", allowed="one each")
    if not np.isfinite(rewards).all():
        raise InputError(f"{int((~np.isfinite(rewards)).sum())} rewards are not finite", fix="leave these choices out")
    bad = ~((chances > 0) & (chances <= 1))
    if bad.any():
        raise InputError(
            f"propensity {chances[bad][0]} of choice {int(bad.argmax())} ({int(bad.sum())} such)",
            allowed="above 0, at most 1", fix="leave out choices whose propensity was not logged",
        )  # fmt: skip
    bad = ~((targets >= 0) & (targets <= 1))
    if bad.any():
        raise InputError(
            f"the target policy's chance {targets[bad][0]} of choice {int(bad.argmax())}", allowed="0 to 1"
        )
    if cap is not None and not cap > 0:
        raise InputError(f"cap = {cap}", allowed="a number above 0, or none")
