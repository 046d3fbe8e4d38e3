"""A verdict in words: whether one run beats another, by how much, or that the rows do not decide it.

The figure is NDCG at the main cut-off. The interval is that of the paired difference over users, as in ``compare``,
given in per cent of the second run's figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sidera.eval.bootstrap import PairedTest, paired_test
from sidera.eval.evaluation import Evaluation
from sidera.eval.metrics import row_metrics

MODES = {"keep": "history kept", "filter": "history left out"}
Outcome = Literal["beats", "does not beat", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """Of ``first`` against ``second``, in one seen mode."""

    first: str
    second: str
    metric: str
    seen: str
    outcome: Outcome  # "does not beat": clearly below, or equal on every row
    percent: float | None  # of the second's figure; None where that is 0
    low: float | None
    high: float | None

    def to_text(self) -> str:
        """``sidera beats the best counter (item_knn) by 10.3 % [5.1, 15.2] in ndcg@10, history kept``."""
        where = f"in {self.metric}, {MODES[self.seen]}"
        if self.percent is None or self.low is None or self.high is None:
            return f"{self.first} {self.outcome} {self.second}, whose figure is 0, {where}"
        if self.outcome == "undecided":
            change = f"{self.percent:+.1f} % [{self.low:+.1f}, {self.high:+.1f}]"
            return f"undecided between {self.first} and {self.second}: {change} {where}"
        if self.outcome == "beats":
            return f"{self.first} beats {self.second} by {self.percent:.1f} % [{self.low:.1f}, {self.high:.1f}] {where}"
        below = f"{abs(self.percent):.1f} % [{abs(self.high):.1f}, {abs(self.low):.1f}] below it"
        return f"{self.first} does not beat {self.second}: {below} {where}"


def verdict_of(test: PairedTest, first: str, second: str, metric: str, seen: str) -> Verdict:
    """What a paired test of a metric says in words."""
    if test.low > 0:
        outcome: Outcome = "beats"
    elif test.high < 0 or (test.wins == test.losses == 0):
        outcome = "does not beat"
    else:
        outcome = "undecided"
    if not test.second > 0:
        return Verdict(first, second, metric, seen, outcome, None, None, None)
    percents = (100 * value / test.second for value in (test.difference, test.low, test.high))
    return Verdict(first, second, metric, seen, outcome, *percents)


def main_cut(ks: Iterable[int]) -> int:
    """The cut-off that is spoken of: 10 where it is measured, else the longest below, else the shortest."""
    ks = sorted(set(ks))
    return max((k for k in ks if k <= 10), default=ks[0])


def against_best(run: Evaluation, counters: Sequence[Evaluation], k: int) -> list[Verdict]:
    """``run`` against the counter with the highest NDCG@k, a verdict a seen mode; all answered the same questions."""
    found, metric = [], f"ndcg@{k}"
    for seen in run.protocol["seen"]:
        known = [one for one in counters if metric in one.metrics.get(seen, {})]
        if known:
            best = max(known, key=lambda one: one.value(metric, seen))
            values = [_row_values(one, seen, metric, k) for one in (run, best)]
            test = paired_test(values[0], values[1], run.user_numbers)
            found.append(verdict_of(test, run.name, f"the best counter ({best.name})", metric, seen))
    return found


def _row_values(run: Evaluation, seen: str, metric: str, k: int) -> np.ndarray:
    """(R,)"""
    return row_metrics(run.target_ranks(seen, list_length(run, k)), [k])[metric]


def list_length(run: Evaluation, k: int) -> int:
    """Items of the list that @k is read from."""
    return next(made["ks"][-1] for made in run.protocol["lists"] if k in made["ks"])
