"""How well a ranker's numbers order what was shown, and how far they are chances: AUC, GAUC, NE, calibration.

A *judgement* is one thing that was shown (an exposure, or for list rewards a whole list): what the model said of it
for each task, what came of it, whose it was and in which request.

* **AUC**: the chance that what was met stands above what was not, ties half.
* **GAUC** by user and by request: the mean of the groups' AUCs, weighted by their size (Zhou et al. 2018, 1706.06978).
  Groups in which all was met, or nothing, say nothing and are left out. A ranker only ever orders inside a request, so
  this is the figure nearest to serving.
* **NE**: the mean log loss over that of the constant mean label (He et al. 2014). 1: as good as knowing the mean.
* **Calibration**: the sum of what was predicted over the sum of what happened. 1: right on average. The *reliability*
  table says it for tenths of the judgements by prediction.

Labels lie between 0 and 1 (shares count as met from one half up, for the two AUCs) and are NaN where nobody can know
yet. Trap: NE and calibration are of numbers that are meant as chances. A fused score (P-Score's p) has no label of its
own: only its AUCs against every task's label are measured, as "p:like".

Intervals are over users: those of one user stand or fall together. AUC's is DeLong's for clusters (Obuchowski 1997),
the others' a bootstrap.

Shape legend: R judgements · U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sidera.core import InputError
from sidera.eval.bootstrap import Estimate, resampled_totals
from sidera.eval.metrics import auc

BINS = 10  # of the reliability table
LEAST = 1e-7  # a chance nearer to 0 or 1 is taken as this: one sure error must not make the loss endless
HALF_WIDTH = 1.96  # standard errors of half a 95 % interval


@dataclass(frozen=True)
class Judgements:
    """What a model said of R shown things, and what came of them."""

    tasks: tuple[str, ...]  # the one to rank by first
    predicted: np.ndarray  # (R, tasks) float64
    labels: Mapping[str, np.ndarray]  # task -> (R,) 0 to 1, NaN: unknown; a task that has none is absent
    user_ids: np.ndarray  # (R,)
    request_ids: np.ndarray  # (R,)

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class Bin:
    """Judgements of like prediction."""

    rows: int
    predicted: float  # mean
    happened: float  # mean


def task_metrics(found: Judgements, *, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """task -> metric -> estimate; "MAIN:TASK" holds the AUCs of the main task against the label of another one.

    A figure that cannot be had (everything was met, or nothing) is left out. InputError when no label is known at all.
    """
    if not len(found):
        raise InputError("no exposures to measure on", fix="check the split: it left none")
    main = found.tasks[0]
    metrics: dict[str, dict[str, Estimate]] = {}
    for task, labels in found.labels.items():
        known = np.isfinite(labels)
        groups = {"": found.user_ids[known], "_request": found.request_ids[known]}
        for name, place in {task: found.tasks.index(task), f"{main}:{task}": 0}.items():
            if name == f"{main}:{task}" and task == main:
                continue
            predicted = found.predicted[known, place]
            measured = order_metrics(predicted, labels[known], groups, resamples, seed)
            if name == task:
                measured |= chance_metrics(predicted, labels[known], groups[""], resamples, seed)
            if measured:
                metrics[name] = measured
    if not metrics:
        raise InputError("of no task both outcomes are known among the exposures", fix="measure on more rows")
    return metrics


def order_metrics(
    predicted: np.ndarray, labels: np.ndarray, groups: Mapping[str, np.ndarray], resamples: int, seed: int
) -> dict[str, Estimate]:
    """``auc``, and ``gauc`` + the group's name for each: ids (R,) by the name; the first are the users."""
    met = labels >= 0.5
    users = groups[""]
    if met.all() or not met.any():
        return {}
    found = {"auc": auc_interval(predicted, met, users)}
    for name, group in groups.items():
        values, weights, of_user = group_aucs(predicted, met, group, users)
        if len(values):
            sums = per_user(of_user, values * weights, weights.astype(np.float64))
            totals = resampled_totals(sums, resamples, seed)
            found[f"gauc{name}"] = _estimate(sums[:, 0].sum() / sums[:, 1].sum(), _ratio(totals[:, 0], totals[:, 1]))
    return found


def chance_metrics(
    predicted: np.ndarray, labels: np.ndarray, user_ids: np.ndarray, resamples: int, seed: int
) -> dict[str, Estimate]:
    """``ne`` and ``calibration``; empty where every label is 0, or every one is 1."""
    sure = np.clip(predicted, LEAST, 1 - LEAST)
    loss = -(labels * np.log(sure) + (1 - labels) * np.log1p(-sure))
    sums = per_user(user_ids, loss, predicted, labels, np.ones(len(labels)))
    totals = np.concatenate([sums.sum(0, keepdims=True), resampled_totals(sums, resamples, seed)])
    losses, said, happened, rows = totals.T
    rate = happened / rows
    if not 0 < rate[0] < 1:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    ne, calibration = _ratio(losses / rows, entropy), _ratio(said, happened)
    return {"ne": _estimate(ne[0], ne[1:]), "calibration": _estimate(calibration[0], calibration[1:])}


def reliability(predicted: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Bins of like size by prediction, lowest first; those of equal predictions fall together."""
    known = np.isfinite(labels)
    predicted, labels = predicted[known], labels[known]
    if not len(predicted):
        return []
    cuts = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(cuts, predicted, side="left")
    rows = np.bincount(place, minlength=len(cuts) + 1)
    sums = [np.bincount(place, values, len(cuts) + 1) for values in (predicted, labels)]
    return [Bin(int(n), float(said / n), float(came / n)) for n, said, came in zip(rows, *sums, strict=True) if n]


def auc_interval(predicted: np.ndarray, met: np.ndarray, user_ids: np.ndarray) -> Estimate:
    """AUC (R,) with DeLong's interval, judgements of one user counted as one cluster (Obuchowski 1997)."""
    value = auc(predicted, met)
    above = np.sort(predicted[~met])  # what was not met
    below = np.sort(predicted[met])
    # of each judgement the share of those of the other kind that it stands right to, ties half
    placed = np.empty(len(predicted))
    placed[met] = _share_below(above, predicted[met])
    placed[~met] = 1 - _share_below(below, predicted[~met])
    pull = np.where(met, (placed - value) / met.sum(), (placed - value) / (~met).sum())
    sums = per_user(user_ids, pull)[:, 0]
    users = len(sums)
    error = float(np.sqrt((sums**2).sum() * users / max(1, users - 1)))
    return Estimate(value, max(0.0, value - HALF_WIDTH * error), min(1.0, value + HALF_WIDTH * error))


def group_aucs(
    predicted: np.ndarray, met: np.ndarray, group_ids: np.ndarray, user_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(groups,) AUC, size and user of every group that holds both kinds."""
    group, first, sizes = np.unique(group_ids, return_index=True, return_counts=True)
    row_group = np.searchsorted(group, group_ids)
    order = np.lexsort((predicted, row_group))
    row_group, predicted, met, users = row_group[order], predicted[order], met[order], user_ids[first]
    # mean rank among equals, inside the group and from 1
    new = np.ones(len(order), dtype=bool)
    new[1:] = (row_group[1:] != row_group[:-1]) | (predicted[1:] != predicted[:-1])
    begins = np.flatnonzero(new)
    tie = np.cumsum(new) - 1
    counts = np.diff(np.append(begins, len(order)))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = (begins + (counts - 1) / 2)[tie] - starts[row_group] + 1
    positive = np.bincount(row_group, met, len(sizes))
    negative = sizes - positive
    both = (positive > 0) & (negative > 0)
    ranks = np.bincount(row_group, rank * met, len(sizes))
    values = (ranks - positive * (positive + 1) / 2)[both] / (positive * negative)[both]
    return values, sizes[both], users[both]


def per_user(user_ids: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """(U, columns) sums."""
    users, place = np.unique(user_ids, return_inverse=True)
    return np.stack([np.bincount(place, values, len(users)) for values in columns], axis=1)


def _share_below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Share of ``ordered`` below each value, equals half."""
    low, high = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (low + high) / (2 * len(ordered))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    """With the 2.5 and 97.5 percentiles of the resamples that could be measured."""
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
