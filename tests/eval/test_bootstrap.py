from __future__ import annotations

import numpy as np
import pytest

from sidera.core import InputError
from sidera.eval import bootstrap
from sidera.eval.bootstrap import intervals, paired_test


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        hits = (rng.random(150) < 0.3).astype(float)
        found = intervals({"hit": hits}, np.arange(150), resamples=300, seed=trial)["hit"]
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 199  # 95 % of 200 is 190


def test_users_are_resampled_not_rows() -> None:
    """100 rows of 10 users who answer alike tell as much as 10 rows: the interval must be as wide."""
    per_user = np.random.default_rng(0).random(10)
    rows = intervals({"m": np.repeat(per_user, 10)}, np.repeat(np.arange(10), 10), seed=3)["m"]
    users = intervals({"m": per_user}, np.arange(10), seed=3)["m"]
    assert (rows.value, rows.low, rows.high) == pytest.approx((users.value, users.low, users.high))
    naive = intervals({"m": np.repeat(per_user, 10)}, np.arange(100), seed=3)["m"]
    assert rows.half_width > 2 * naive.half_width


def test_intervals_are_seeded_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, users = np.random.default_rng(0).random(50), np.arange(50)
    whole = intervals({"m": values}, users, seed=5)
    assert whole == intervals({"m": values}, users, seed=5)
    assert whole != intervals({"m": values}, users, seed=6)
    monkeypatch.setattr(bootstrap, "CHUNK", 1000)
    assert intervals({"m": values}, users, seed=5) == whole


def test_bootstrap_equals_a_slow_one() -> None:
    """Same draws, one resample at a time."""
    users = np.array([0, 0, 1, 2, 2, 2])
    values = np.array([1.0, 0, 0.5, 1, 1, 0])
    fast = intervals({"m": values}, users, resamples=40, seed=9)["m"]
    rng = np.random.default_rng(9)
    means = []
    for drawn in rng.integers(3, size=(40, 3)):
        taken = np.concatenate([values[users == user] for user in drawn])
        means.append(taken.mean())
    assert (fast.low, fast.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_paired_test_detects_a_real_difference() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(2000) < 0.10).astype(float)
    better = np.maximum(base, rng.random(2000) < 0.02)
    found = paired_test(better, base, np.arange(2000))
    assert found.significant
    assert 0 < found.low < found.difference < found.high
    assert (found.wins, found.losses) == (int((better > base).sum()), 0)
    assert found.difference == pytest.approx(found.first - found.second)
    # unpaired intervals of the two overlap: pairing is what finds it
    apart = [intervals({"m": run}, np.arange(2000))["m"] for run in (better, base)]
    assert apart[1].high > apart[0].low


def test_paired_test_is_rarely_fooled_by_noise() -> None:
    rng = np.random.default_rng(2)
    fooled = sum(
        paired_test(*(rng.random((2, 200)) < 0.3).astype(float), np.arange(200), resamples=200, seed=trial).significant
        for trial in range(100)
    )
    assert fooled <= 12  # 5 expected


def test_equal_runs_do_not_differ() -> None:
    same = paired_test(np.ones(20), np.ones(20), np.arange(20))
    assert (same.difference, same.p_bootstrap, same.p_permutation, same.wins) == (0, 1, 1, 0)
    assert not same.significant


def test_no_rows_and_unequal_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        intervals({"m": np.zeros(0)}, np.zeros(0, dtype=int))
    with pytest.raises(InputError, match="3 and 4 rows"):
        paired_test(np.zeros(3), np.zeros(4), np.zeros(3, dtype=int))
