"""How sure a number is: percentile bootstrap intervals by user, and paired tests between two runs.

Users are resampled, not rows: the rows of one user stand or fall together (Efron & Tibshirani 1993, chapters 13, 16).
A resample is a vector of how often each user was drawn, so all metrics of all resamples are one matrix product:
(resamples, users) @ (users, metrics). Differences between two runs are *paired*: both are resampled with the same
users, which removes the variance that they share.

Trap: these intervals cover the choice of users. They say nothing of the spread over training seeds, which is usually
larger; a claim about a method needs several seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sidera.core import InputError

CHUNK = 4_000_000  # draws held in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over rows with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedTest:
    """First run minus second on the same rows."""

    first: float
    second: float
    difference: float
    low: float  # 95 % interval of the difference, bootstrap by user
    high: float
    p_bootstrap: float  # two-sided, from the share of resamples on the other side of zero
    p_permutation: float  # two-sided, exchanging the two runs user by user
    wins: int  # users for whom the first run is better
    losses: int

    @property
    def significant(self) -> bool:
        """Both tests at 5 %."""
        return self.p_bootstrap < 0.05 and self.p_permutation < 0.05


def intervals(
    metrics: Mapping[str, np.ndarray], user_ids: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Mean and 95 % interval of each metric (R,), resampling the users of the rows ``user_ids (R,)``."""
    _need_rows(user_ids)
    sums, counts = _per_user(metrics, user_ids)
    means = sums.sum(axis=0) / counts.sum()
    drawn = _resampled_means(sums, counts, resamples, seed)  # (resamples, metrics)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {name: Estimate(float(means[m]), float(low[m]), float(high[m])) for m, name in enumerate(metrics)}


def paired_test(
    first: np.ndarray, second: np.ndarray, user_ids: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> PairedTest:
    """Compare one metric of two runs, (R,) each, on the same rows."""
    _need_rows(user_ids)
    if first.shape != second.shape or first.shape != user_ids.shape:
        raise InputError(
            f"runs of {first.size} and {second.size} rows cannot be paired", fix="evaluate on the same rows"
        )
    sums, counts = _per_user({"difference": first.astype(np.float64) - second}, user_ids)
    difference = float(sums.sum() / counts.sum())
    drawn = _resampled_means(sums, counts, resamples, seed)[:, 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    # + 1: the observed sample counts as one draw, so that no p-value is zero
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return PairedTest(
        first=float(first.mean()),
        second=float(second.mean()),
        difference=difference,
        low=float(low),
        high=float(high),
        p_bootstrap=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        p_permutation=_permutation_p(sums[:, 0], resamples, seed),
        wins=int((sums[:, 0] > 0).sum()),
        losses=int((sums[:, 0] < 0).sum()),
    )


def _need_rows(user_ids: np.ndarray) -> None:
    if user_ids.size == 0:
        raise InputError("no rows to estimate from", allowed="1 row or more", fix="check the split: it left no targets")


def _per_user(metrics: Mapping[str, np.ndarray], user_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U, metrics) sums and (U,) row counts."""
    _, user_of_row, counts = np.unique(user_ids, return_inverse=True, return_counts=True)
    num_users = counts.size
    columns = [np.bincount(user_of_row, weights=values, minlength=num_users) for values in metrics.values()]
    return np.stack(columns, axis=1), counts.astype(np.float64)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, metrics) means over users drawn with replacement."""
    total = resampled_totals(np.concatenate([sums, counts[:, None]], axis=1), resamples, seed)
    return total[:, :-1] / total[:, -1:]


def resampled_totals(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, metrics) totals of sums (U, metrics) over users drawn with replacement."""
    num_users = len(sums)
    rng = np.random.default_rng(seed)
    totals = []
    for size in _chunks(resamples, num_users):
        drawn = rng.integers(num_users, size=(size, num_users)) + num_users * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users)
        totals.append(weights.astype(np.float64) @ sums)  # (size, metrics)
    return np.concatenate(totals)


def _permutation_p(differences: np.ndarray, resamples: int, seed: int) -> float:
    """Flip the sign of each user's difference at random: how often is the sum as far from zero as the observed one?"""
    differences = differences[differences != 0]  # the others add nothing under any sign
    observed = abs(differences.sum())
    rng = np.random.default_rng(seed)
    beyond = 0
    for size in _chunks(resamples, differences.size):
        signs = rng.integers(2, size=(size, differences.size), dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ differences) >= observed - 1e-9).sum())
    return (beyond + 1) / (resamples + 1)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    step = max(1, CHUNK // max(1, width))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
