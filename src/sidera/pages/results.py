"""Accuracies as tables: for each seen mode a row per run, the best set off only where it is clear.

Clear means: the 95 % interval of the paired difference from every other run of the table leaves 0 out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidera.eval.bootstrap import intervals
from sidera.eval.evaluation import Evaluation, fit_of, protocol_line
from sidera.eval.metrics import row_metrics
from sidera.pages.charts import Figure, dots
from sidera.pages.headline import main_k
from sidera.pages.runs import Measured

SEEN_MEANS = {
    "keep": "items of the history may be recommended again",
    "filter": "items of the history are left out",
}
NAMES = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "coverage": "Coverage", "gini": "Gini"}
NAMES |= {"head_share": "Head share"}
RESAMPLES = 500


@dataclass(frozen=True)
class Cell:
    value: float | None
    half_width: float | None
    best: bool


@dataclass(frozen=True)
class Row:
    label: str
    baseline: bool
    fit: str  # the events that the model has learned from
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    seen: str
    means: str
    head: list[str]
    rows: list[Row]
    protocol: str


def metric_name(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{NAMES.get(name, name)}@{k}" if k else NAMES.get(name, name)


def overview(measured: Sequence[Measured]) -> list[Figure]:
    """Recall and NDCG at the main cut-off in each seen mode, a dot with its interval for each run."""
    k = main_k(measured[0].run)
    figures = []
    for metric in (f"recall@{k}", f"ndcg@{k}"):
        for seen in measured[0].run.protocol["seen"]:
            rows = []
            for one in measured:
                if metric in one.run.metrics.get(seen, {}):
                    estimate = one.run.metrics[seen][metric]
                    rows.append(
                        (one.label, (estimate.value, estimate.low, estimate.high), one.trained and not one.baseline)
                    )
            figures.append(dots(f"{metric_name(metric)}, history {'kept' if seen == 'keep' else 'left out'}",
                                "95 % intervals over users", rows, zero=True))  # fmt: skip
    return figures


def tables(measured: Sequence[Measured]) -> list[Table]:
    """Of runs that answered the same questions."""
    return [_table(measured, seen) for seen in SEEN_MEANS if any(seen in one.run.metrics for one in measured)]


def protocol(measured: Sequence[Measured], *seen: str) -> str:
    """The line that stands beside every figure."""
    shown = {"seen": list(seen)} if seen else {}
    return protocol_line(*({**one.run.protocol, **shown} for one in measured))


def _table(measured: Sequence[Measured], seen: str) -> Table:
    measured = [one for one in measured if seen in one.run.metrics]
    names = [name for name in measured[0].run.metrics[seen] if not name.startswith("expected_")]
    short_mrr = [name for name in names if name.startswith("mrr@")][:-1]  # the longest list's says the same and more
    names = [name for name in names if name not in short_mrr]
    lists = list(measured[0].run.lists[seen])
    clear = _clear_winners([one.run for one in measured], seen, names)
    rows = []
    for position, one in enumerate(measured):
        cells = []
        for name in names:
            estimate = one.run.metrics[seen].get(name)
            cells.append(
                Cell(estimate.value, estimate.half_width, clear.get(name) == position)
                if estimate
                else Cell(None, None, False)
            )
        cells += [Cell(one.run.lists[seen].get(name), None, False) for name in lists]
        rows.append(Row(one.label, one.baseline, fit_of(one.run), cells))
    head = [metric_name(name) for name in (*names, *lists)]
    return Table(seen, SEEN_MEANS[seen], head, rows, protocol(measured, seen))


def _clear_winners(runs: Sequence[Evaluation], seen: str, names: Sequence[str]) -> dict[str, int]:
    """metric -> the run that is clearly above every other one in it."""
    if len(runs) < 2:
        return {}
    values = [_row_values(run, seen) for run in runs]
    differences: dict[str, np.ndarray] = {}
    best: dict[str, int] = {}
    for name in names:
        positions = [position for position, estimates in enumerate(values) if name in estimates]
        if len(positions) < 2:
            continue
        best[name] = max(positions, key=lambda position: float(values[position][name].mean()))
        for position in positions:
            if position != best[name]:
                differences[f"{name}\n{position}"] = values[best[name]][name] - values[position][name]
    if not differences:
        return {}
    estimates = intervals(differences, runs[0].user_numbers, resamples=RESAMPLES)
    unclear = {key.partition("\n")[0] for key, estimate in estimates.items() if not estimate.low > 0}
    return {name: position for name, position in best.items() if name not in unclear}


def _row_values(run: Evaluation, seen: str) -> dict[str, np.ndarray]:
    """metric -> (R,)."""
    values: dict[str, Any] = {}
    for made in run.protocol["lists"]:
        values |= row_metrics(run.target_ranks(seen, made["ks"][-1]), made["ks"])
    return values
