"""The sentence that a report opens with: what the best model finds, and by how much more than counting does.

Differences are paired by row and come with their 95 % interval over users, as in ``sidera compare``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidera.eval.bootstrap import PairedTest, paired_test
from sidera.eval.evaluation import Evaluation
from sidera.eval.metrics import row_metrics
from sidera.eval.verdict import against_best, list_length, main_cut
from sidera.pages.runs import Measured
from sidera.train.baselines import COMPANIONS

NUMBERS = {1: "one", 5: "five", 10: "ten", 20: "twenty", 50: "fifty", 100: "hundred"}


@dataclass(frozen=True)
class Headline:
    first: str  # "The generator finds 9.4 of 100 next items in its first ten, 1.3 [0.9, 1.7] more than item-kNN."
    rest: tuple[str, ...]  # further sentences


def headline(measured: Sequence[Measured]) -> Headline:
    """About runs that answered the same questions; the first seen mode decides which of them leads."""
    seen, k = measured[0].run.protocol["seen"][0], main_k(measured[0].run)
    comparable = [one for one in measured if math.isfinite(_recall(one.run, seen, k))]
    if not comparable:
        return Headline("Nothing was found out: no row has a finite recall.", ())
    trained = [one for one in comparable if one.trained] or [one for one in comparable if not one.baseline]
    best = max(trained, key=lambda one: one.run.value(f"recall@{k}", seen))
    finds = 100 * best.run.value(f"recall@{k}", seen)
    opening = f"{_begin(_the(best))} finds {finds:.1f} of 100 next items in its first {NUMBERS.get(k, k)}"
    counting = [one for one in comparable if one.run.name in COMPANIONS]  # the best of them is the bar
    against = max(counting, key=lambda one: one.run.value(f"recall@{k}", seen), default=None)
    if against is None or against is best:
        return Headline(f"{opening}.", tuple(_runners_up(best, trained, seen, k)))
    first = f"{opening}, {verdict(difference(best.run, against.run, seen, k), against.label)}."
    counters = [one.run for one in counting if one is not best]
    rest = [f"Verdict: {one.to_text()}." for one in against_best(best.run, counters, k)]
    for other in best.run.protocol["seen"][1:]:
        if other in against.run.metrics:
            value = 100 * best.run.value(f"recall@{k}", other)
            words = verdict(difference(best.run, against.run, other, k), against.label)
            mode = "left out of the lists" if other == "filter" else "allowed in the lists"
            rest.append(f"With items of the history {mode}: {value:.1f}, {words}.")
    return Headline(first, (*rest, *_runners_up(best, trained, seen, k)))


def _recall(run: Evaluation, seen: str, k: int) -> float:
    estimate = run.metrics.get(seen, {}).get(f"recall@{k}")
    return estimate.value if estimate else math.nan


def main_k(run: Evaluation) -> int:
    """The cut-off that the page speaks of."""
    return main_cut(k for made in run.protocol["lists"] for k in made["ks"])


def difference(first: Evaluation, second: Evaluation, seen: str, k: int) -> PairedTest:
    """Recall@k of the first less the second, paired."""
    hits = [row_metrics(run.target_ranks(seen, list_length(run, k)), [k])[f"recall@{k}"] for run in (first, second)]
    return paired_test(hits[0], hits[1], first.user_numbers)


def verdict(test: PairedTest, against: str) -> str:
    """``1.3 [0.9, 1.7] more than item-kNN``; a difference that may be chance is called unclear."""
    gap, low, high = (100 * value for value in (test.difference, test.low, test.high))
    if low <= 0 <= high:
        return f"with no clear difference from {against} ({_signed(gap)} [{_signed(low)}, {_signed(high)}])"
    if gap > 0:
        return f"{gap:.1f} [{low:.1f}, {high:.1f}] more than {against}"
    return f"{-gap:.1f} [{-high:.1f}, {-low:.1f}] fewer than {against}"


def _runners_up(best: Measured, trained: Sequence[Measured], seen: str, k: int) -> list[str]:
    others = sorted((one for one in trained if one is not best), key=lambda one: -one.run.value(f"recall@{k}", seen))
    return [
        f"{_begin(_the(other))} finds {100 * other.run.value(f'recall@{k}', seen):.1f}, "
        f"{verdict(difference(other.run, best.run, seen, k), _the(best))}."
        for other in others[:3]
    ]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _the(one: Measured) -> str:
    return "the generator" if one.label == "generator" else one.label


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]
