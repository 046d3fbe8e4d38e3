"""Off-policy estimates against a bandit whose truth is known, and against the simulated world's own propensities."""

from __future__ import annotations

import numpy as np
import pytest

from sidera.core import InputError
from sidera.eval.off_policy import mean_by_user, off_policy

NUM_ACTIONS = 5


def bandit(seed: int, num_users: int = 200, each: int = 4) -> dict[str, np.ndarray]:
    """Two kinds of users; the logger prefers action 0, the target action 4; q is the truth plus an error."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), each)
    kind = users % 2
    chance = np.stack([np.linspace(0.1, 0.7, NUM_ACTIONS), np.linspace(0.5, 0.3, NUM_ACTIONS)])[kind]  # (n, A)
    logger = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    target = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
    action = rng.choice(NUM_ACTIONS, len(users), p=logger)
    rows = np.arange(len(users))
    guess = chance + 0.1 * np.sin(np.arange(NUM_ACTIONS))
    return {
        "reward": (rng.random(len(users)) < chance[rows, action]).astype(float),
        "propensity": logger[action],
        "target": target[action],
        "user_ids": users,
        "model_logged": guess[rows, action],
        "model_target": guess @ target,
        "truth": chance @ target,
    }


def test_each_estimate_is_its_formula() -> None:
    log = bandit(0, num_users=6)
    truth = log.pop("truth")
    found = off_policy(**log)
    weights = [t / p for t, p in zip(log["target"], log["propensity"], strict=True)]
    ips = sum(w * r for w, r in zip(weights, log["reward"], strict=True)) / len(weights)
    snips = sum(w * r for w, r in zip(weights, log["reward"], strict=True)) / sum(weights)
    each = zip(weights, log["reward"], log["model_logged"], log["model_target"], strict=True)
    dr = sum(mean + w * (r - q) for w, r, q, mean in each) / len(weights)
    assert found.ips.value == pytest.approx(ips)
    assert found.snips.value == pytest.approx(snips)
    assert found.dr is not None
    assert found.dr.value == pytest.approx(dr)
    assert found.effective == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    assert found.covered == pytest.approx(np.mean(weights))
    assert len(truth) == found.num_choices


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """200 logs: about 95 % of the intervals hold the truth, and a model that is wrong biases nothing."""
    covered = {"ips": 0, "snips": 0, "dr": 0}
    errors, widths = [], {"ips": 0.0, "dr": 0.0}
    for seed in range(200):
        log = bandit(seed)
        truth = float(log.pop("truth").mean())
        found = off_policy(**log)
        for name in covered:
            estimate = getattr(found, name)
            covered[name] += estimate.low <= truth <= estimate.high
        errors.append(found.dr.value - truth)  # type: ignore[union-attr]
        widths["ips"] += found.ips.half_width
        widths["dr"] += found.dr.half_width  # type: ignore[union-attr]
    assert all(182 <= number <= 199 for number in covered.values()), covered
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(200)
    assert widths["dr"] < widths["ips"]


def test_the_logged_mean_is_another_number() -> None:
    log = bandit(3, num_users=2000)
    truth = float(log.pop("truth").mean())
    found = off_policy(**log)
    assert found.logged.high < truth  # taking the log's mean for the policy's would be wrong


def test_users_are_the_sample() -> None:
    """Ten copies of every row are no more evidence."""
    rng = np.random.default_rng(0)
    values, users = rng.random(50), np.arange(50)
    once, tenfold = mean_by_user(values, users), mean_by_user(np.repeat(values, 10), np.repeat(users, 10))
    assert tenfold.half_width == pytest.approx(once.half_width)
    assert mean_by_user(values[:1], users[:1]).half_width == np.inf


def test_a_cap_bounds_the_weights_and_is_told() -> None:
    log = bandit(0)
    log.pop("truth")
    found = off_policy(**log, cap=2.0)
    assert found.num_capped == int((log["target"] / log["propensity"] > 2).sum()) > 0
    assert found.covered < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": np.array([0.0, 0.5])}, "propensity 0.0 of choice 0"),
        ({"propensity": np.array([0.5, np.nan])}, "propensity nan of choice 1"),
        ({"target": np.array([0.5, 1.5])}, "chance 1.5 of choice 1"),
        ({"target": np.array([0.0, 0.0])}, "none of the logged choices"),
        ({"reward": np.array([np.nan, 0.0])}, "1 rewards are not finite"),
        ({"user_ids": np.array([1])}, "user_ids has shape"),
        ({"model_logged": np.array([0.1, 0.1])}, "the model twice"),
        ({"cap": 0.0}, "cap = 0.0"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    good = {
        "reward": np.array([1.0, 0.0]), "propensity": np.array([0.5, 0.5]), "target": np.array([0.2, 0.8]),
        "user_ids": np.array([0, 1]),
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        off_policy(**{**good, **changes})
