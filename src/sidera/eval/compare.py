"""Is run A better than run B? Paired tests from the ranks that two evaluations kept (``sidera compare A B``).

Only runs that answered the same questions can be paired: same data set, split, part, rows, catalogue size. Lists made
with different beams may be compared, and the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidera.console import table
from sidera.core import InputError
from sidera.eval.bootstrap import PairedTest, paired_test
from sidera.eval.evaluation import Evaluation, fit_of, load_evaluation
from sidera.eval.metrics import row_metrics
from sidera.eval.verdict import Verdict, main_cut, verdict_of

SAME = ("dataset", "dataset_digest", "split", "which", "rows", "row_digest", "num_items", "hits", "ranking")


@dataclass(frozen=True)
class Comparison:
    """Paired differences, first run minus second."""

    first: str
    second: str
    protocol: dict[str, Any]
    tests: dict[tuple[str, str], PairedTest]  # (seen mode, metric) -> test
    fits: tuple[str, str]  # the events that each has learned from: "train" or "train+valid"
    notes: tuple[str, ...]  # what differs between the runs without making them incomparable

    @property
    def verdicts(self) -> list[Verdict]:
        """In words, a sentence a seen mode, by NDCG at the main cut-off."""
        k = main_cut([k for made in self.protocol["lists"] for k in made["ks"]])
        return [
            verdict_of(test, self.first, self.second, metric, seen)
            for (seen, metric), test in self.tests.items()
            if metric == f"ndcg@{k}"
        ]

    def to_text(self) -> str:
        """A plain table for the shell."""
        shown = f"{self.protocol['dataset']} {self.protocol['split']} {self.protocol['which']}"
        first, second = (f"{name} (fit: {fit})" for name, fit in zip((self.first, self.second), self.fits, strict=True))
        lines = [f"A = {first}   B = {second}   ({shown}, {self.protocol['rows']} rows, item-level, full ranking)"]
        lines += [f"note: {note}" for note in self.notes]
        header = ("seen", "metric", "A", "B", "A - B", "95 % interval", "p boot", "p perm", "better A/B")
        rows: list[Sequence[str]] = []
        for (seen, metric), test in self.tests.items():
            interval = f"[{test.low:+.4f}, {test.high:+.4f}]"
            mark = " *" if test.significant else ""
            values = (f"{test.first:.4f}", f"{test.second:.4f}", f"{test.difference:+.4f}{mark}", interval)
            tests = (_p(test.p_bootstrap), _p(test.p_permutation), f"{test.wins}/{test.losses}")
            rows.append((seen, metric, *values, *tests))
        lines.append(table(header, rows, left=len(header)))
        lines += [f"verdict: {one.to_text()}" for one in self.verdicts]
        return "\n".join(
            [*lines, "* both tests below 5 %; many metrics are tested at once: expect one in twenty by chance"]
        )


def compare(
    first: str | Path | Evaluation, second: str | Path | Evaluation, *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Test every metric that both runs have; InputError names both when they did not answer the same questions."""
    a = first if isinstance(first, Evaluation) else load_evaluation(first)
    b = second if isinstance(second, Evaluation) else load_evaluation(second)
    names = [str(given) if not isinstance(given, Evaluation) else given.name for given in (first, second)]
    check_comparable(a, b, names)
    users = a.user_numbers
    tests: dict[tuple[str, str], PairedTest] = {}
    for seen in (seen for seen in a.protocol["seen"] if seen in b.protocol["seen"]):
        lists_b = {tuple(made["ks"]) for made in b.protocol["lists"]}
        for ks in (tuple(made["ks"]) for made in a.protocol["lists"] if tuple(made["ks"]) in lists_b):
            metrics_a, metrics_b = (row_metrics(run.target_ranks(seen, ks[-1]), ks) for run in (a, b))
            for metric in metrics_a:
                if not metric.startswith("expected_"):
                    test = paired_test(metrics_a[metric], metrics_b[metric], users, resamples=resamples, seed=seed)
                    tests[seen, metric] = test
    if not tests:
        raise InputError(
            f"{names[0]} and {names[1]} share no seen mode and list of cut-offs",
            fix="evaluate both with the same [eval] ks and seen",
        )
    return Comparison(names[0], names[1], a.protocol, tests, (fit_of(a), fit_of(b)), _notes(a, b))


def check_comparable(a: Evaluation, b: Evaluation, names: Sequence[str]) -> None:
    """InputError, naming both runs, unless they answered the same questions."""
    for key in SAME:
        if a.protocol[key] != b.protocol[key]:
            values = f"{a.protocol[key]!r} in {names[0]} and {b.protocol[key]!r} in {names[1]}"
            raise InputError(
                f"runs cannot be compared: {key} is {values}",
                fix="evaluate both on the same rows with the same [eval] section",
            )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def _notes(a: Evaluation, b: Evaluation) -> tuple[str, ...]:
    notes = []
    if fit_of(a) != fit_of(b):
        notes.append(f"fit: A on {fit_of(a)}, B on {fit_of(b)}: only one has learned the validation events")
    for list_a, list_b in zip(a.protocol["lists"], b.protocol["lists"], strict=False):
        if list_a["ks"] == list_b["ks"] and list_a["beam"] != list_b["beam"]:
            beams = [f"beam {made['beam']}" if made["beam"] else "exact" for made in (list_a, list_b)]
            notes.append(f"lists for k = {', '.join(map(str, list_a['ks']))}: A {beams[0]}, B {beams[1]}")
    if a.protocol["max_history"] != b.protocol["max_history"]:
        notes.append(f"events read: A {a.protocol['max_history']}, B {b.protocol['max_history']}")
    return tuple(notes)
