"""AUC, GAUC, NE, calibration and their intervals, held against slow references and cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from sidera.core import InputError
from sidera.eval.ranker_metrics import Judgements, auc_interval, group_aucs, reliability, task_metrics


def drawn(users: int = 60, each: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(chances, labels, users, requests) where the chances are true; predictions are coarse, so that some tie."""
    rng = np.random.default_rng(seed)
    count = users * each
    chance = np.round(rng.beta(2, 5, count), 2).clip(0.01, 0.99)
    return chance, (rng.random(count) < chance).astype(float), np.repeat(np.arange(users), each), np.arange(count) // 4


def judgements(seed: int = 0, **labels: np.ndarray) -> Judgements:
    chance, met, users, requests = drawn(seed=seed)
    return Judgements(("main", "like"), np.stack([chance**2, chance], 1), labels or {"like": met}, users, requests)


def test_figures_are_those_of_the_definitions() -> None:
    chance, met, users, requests = drawn()
    found = task_metrics(judgements(), resamples=50)
    like = found["like"]
    assert like["auc"].value == pytest.approx(roc_auc_score(met, chance))
    rate = met.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert like["ne"].value == pytest.approx(log_loss(met, chance) / entropy)
    assert like["calibration"].value == pytest.approx(chance.sum() / met.sum())
    for name, group in (("gauc", users), ("gauc_request", requests)):
        parts = [(roc_auc_score(met[group == one], chance[group == one]), (group == one).sum())
                 for one in np.unique(group) if 0 < met[group == one].mean() < 1]  # fmt: skip
        values, sizes = zip(*parts, strict=True)
        assert like[name].value == pytest.approx(np.average(values, weights=sizes)), name
    for metric in like.values():
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high


def test_a_fused_score_has_no_chance_of_its_own() -> None:
    found = task_metrics(judgements(), resamples=20)
    assert set(found) == {"like", "main:like"}
    assert set(found["main:like"]) == {"auc", "gauc", "gauc_request"}
    assert found["main:like"]["auc"].value == pytest.approx(found["like"]["auc"].value)  # a square keeps the order


def test_knowing_the_mean_alone_has_an_ne_of_one_and_knowing_nothing_more() -> None:
    _, met, users, requests = drawn()
    said = np.stack([np.full(len(met), met.mean()), np.full(len(met), 0.99)], 1)
    found = task_metrics(Judgements(("a", "b"), said, {"a": met, "b": met}, users, requests), resamples=20)
    assert found["a"]["ne"].value == pytest.approx(1)
    assert found["a"]["calibration"].value == pytest.approx(1)
    assert found["a"]["auc"].value == pytest.approx(0.5)
    assert found["b"]["ne"].value > 3
    assert np.isfinite(found["b"]["ne"].value)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """The true AUC of these draws is that of a very large sample; users are independent, so 95 % should cover it."""
    chance, met, _, _ = drawn(40_000, 8, seed=99)
    truth = roc_auc_score(met, chance)
    intervals = []
    for seed in range(200):
        said, came, users, _ = drawn(seed=seed)
        intervals.append(auc_interval(said, came > 0.5, users))
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.88 < covered <= 1.0


def test_users_who_repeat_themselves_teach_nothing_new() -> None:
    """Ten copies of every row of the same user are no more evidence: the interval keeps its width."""
    said, met, users, _ = drawn()
    once = auc_interval(said, met > 0.5, users)
    often = auc_interval(np.tile(said, 10), np.tile(met, 10) > 0.5, np.tile(users, 10))
    assert often.value == pytest.approx(once.value)
    assert often.half_width == pytest.approx(once.half_width)


def test_unknown_labels_are_left_out_and_nothing_known_is_refused() -> None:
    _, met, users, _ = drawn()
    half = met.copy()
    half[::2] = np.nan
    found = task_metrics(judgements(like=half), resamples=20)
    chance = judgements().predicted[:, 1]
    assert found["like"]["auc"].value == pytest.approx(roc_auc_score(met[1::2], chance[1::2]))
    with pytest.raises(InputError, match="of no task both outcomes are known"):
        task_metrics(judgements(like=np.full(len(users), np.nan)))
    assert "like" not in task_metrics(judgements(like=np.ones(len(users)), main=met), resamples=5)


def test_reliability_bins_hold_all_and_equal_predictions_fall_together() -> None:
    chance, met, _, _ = drawn()
    bins = reliability(chance, met)
    assert sum(one.rows for one in bins) == len(met)
    assert [one.predicted for one in bins] == sorted(one.predicted for one in bins)
    assert np.average([one.happened for one in bins], weights=[one.rows for one in bins]) == pytest.approx(met.mean())
    assert len(reliability(np.full(100, 0.3), met[:100])) == 1
    assert reliability(chance, np.full(len(met), np.nan)) == []


def test_group_aucs_skip_groups_of_one_kind() -> None:
    said, met = np.array([0.1, 0.9, 0.5, 0.5, 0.2]), np.array([False, True, True, False, True])
    values, sizes, users = group_aucs(said, met, np.array([0, 0, 1, 1, 2]), np.array([7, 7, 7, 7, 8]))
    assert values.tolist() == [1.0, 0.5]
    assert sizes.tolist() == [2, 2]
    assert users.tolist() == [7, 7]
