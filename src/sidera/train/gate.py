"""The gate: whether a refreshed model may take the place of the one that answers.

Both answer the same rows of the newest part of the log, which neither has learned: those that the old model had no hand
in, where the log says which (``data.newest.neutral_rows``). Measured are

* quality: NDCG@10 of both, paired by user. It speaks against the new model where it is clearly worse, and by more than
  is allowed;
* legality: every answer is an item that is there, once, and as many as asked for;
* drift: how many items of the old lists are in the new ones;
* size on the disk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows
from sidera.engine.recommender import Recommender
from sidera.eval.bootstrap import paired_test
from sidera.eval.metrics import TargetRanks, row_metrics, target_ranks
from sidera.eval.ranking import questions, sample_rows, to_numpy

K = 10
Answers = tuple[np.ndarray, np.ndarray]  # (R,) NDCG@10 and (R, 10) lists


@dataclass(frozen=True)
class Gates:
    """What a refreshed model has to keep to."""

    max_loss: float = 0.05  # share of the old model's NDCG@10 on the newest part that may clearly be lost
    min_overlap: float = 0.1  # mean share of an old list of ten that is in the new one
    max_growth: float = 1.5  # bytes on the disk / bytes of the old version
    rows: int = 1000  # rows of the newest part that are asked, at most


@dataclass(frozen=True)
class Verdict:
    """What was measured, and what of it speaks against publishing; nothing: ``against`` is empty."""

    rows: int
    neutral: bool  # the old model had no hand in what was chosen from; False: the rows favour it
    ndcg_old: float
    ndcg_new: float
    difference: tuple[float, float, float]  # new - old, and its 95 % interval
    legality: float
    overlap: float
    growth: float
    against: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.against

    def line(self) -> str:
        mean, low, high = self.difference
        whose = "" if self.neutral else " of what the old one showed"
        return (
            f"NDCG@{K} {self.ndcg_new:.4f}, before {self.ndcg_old:.4f} ({mean:+.4f}, 95 % {low:+.4f} to {high:+.4f},"
            f" {self.rows:,} rows{whose}); legality {self.legality:.4f};"
            f" {100 * self.overlap:.0f} % of the old answers stay; {self.growth:.2f} x the size"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def judge(
    old: Recommender, new: Recommender, dataset: Dataset, rows: EvalRows, gates: Gates, *, sizes: tuple[int, int],
    neutral: bool = False, seed: int = 0, filter_seen: bool = False, answers: Answers | None = None,
) -> Verdict:  # fmt: skip
    """Measure both on ``rows``; ``sizes``: bytes of the old and of the new version; ``neutral``: of the rows;
    ``answers`` of the new one to their sample (``gates.rows``, ``seed``), where it was asked before."""
    growth = sizes[1] / max(1, sizes[0])
    if not len(rows):
        why = "no user with a history did anything in the newest part: there is nothing to measure on"
        return Verdict(0, neutral, 0.0, 0.0, (0.0, 0.0, 0.0), 1.0, 0.0, growth, (why,))
    rows = sample_rows(rows, gates.rows, seed)
    ndcg_old, lists_old = answers_of(old, dataset, rows, filter_seen=filter_seen)
    ndcg_new, lists_new = answers or answers_of(new, dataset, rows, filter_seen=filter_seen)
    test = paired_test(ndcg_new, ndcg_old, rows.user_ids, seed=seed)
    legality = _legality(new, lists_new, lists_old)
    shared = [len({*a} & {*b} - {-1}) / max(1, len({*a} - {-1})) for a, b in zip(lists_old.tolist(), lists_new.tolist(),
                                                                              strict=True)]  # fmt: skip
    before, after, overlap = float(ndcg_old.mean()), float(ndcg_new.mean()), float(np.mean(shared))
    against = []
    if not np.isfinite(after) or (after < (1 - gates.max_loss) * before and test.high < 0):
        lost = 100 * (1 - after / before)
        against.append(f"quality: NDCG@{K} fell by {lost:.1f} % on the newest part, allowed {100 * gates.max_loss:g} %")
    if legality < 1:
        against.append(f"legality: {100 * (1 - legality):.2f} % of the answers are no items, or twice, or missing")
    if overlap < gates.min_overlap:
        against.append(f"drift: {100 * overlap:.0f} % of the old answers stay, wanted {100 * gates.min_overlap:g} %")
    if growth > gates.max_growth:
        against.append(f"size: {growth:.2f} x the old one, allowed {gates.max_growth:g}")
    difference = (test.difference, test.low, test.high)
    return Verdict(len(rows), neutral, before, after, difference, legality, overlap, growth, tuple(against))


def size_of(*folders: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def answers_of(one: Recommender, dataset: Dataset, rows: EvalRows, *, filter_seen: bool) -> Answers:
    ranks, lists = TargetRanks.empty(len(rows), K), np.full((len(rows), K), -1, np.int64)
    for index, batch in questions(one, dataset, rows, 256):
        found = to_numpy(one.rank(batch, K, beam=one.beam, filter_seen=filter_seen).item_ids)
        lists[index, : found.shape[1]] = found
        ranks.put(index, target_ranks(found, rows.target_ids[index]))
    return row_metrics(ranks, [K])[f"ndcg@{K}"], lists


def _legality(new: Recommender, lists: np.ndarray, before: np.ndarray) -> float:
    """Share of slots that hold an item of the catalogue, not removed, not twice; a slot that was answered before and
    is empty now counts as wrong."""
    there = lists >= 0
    alive = there & (lists < new.catalog.num_items)
    alive[alive] = ~np.asarray(new.catalog.removed)[lists[alive]]
    ordered = np.sort(lists, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).sum()
    wanted = (there | (before >= 0)).sum()
    return float((alive.sum() - twice) / max(1, wanted))
