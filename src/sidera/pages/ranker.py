"""The page about a ranker or a list reward: every task's figures with intervals, and how far its numbers are chances.

sidera report runs/pscore
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidera.artifacts import MANIFEST, kind_at
from sidera.eval.ranker_evaluation import KIND, RankerEvaluation
from sidera.pages.names import data_title, model_title
from sidera.pages.render import write_page

NAMES = {"auc": "AUC", "gauc": "GAUC by user", "gauc_request": "GAUC by request", "ne": "NE"}
NAMES |= {"calibration": "calibration"}


def ranker_evaluations(paths: Sequence[str | Path]) -> list[RankerEvaluation]:
    """Those below the folders, test parts first."""
    manifests = sorted(file for path in paths for file in Path(path).rglob(MANIFEST))
    found = [RankerEvaluation.load(file.parent) for file in manifests if kind_at(file.parent) == KIND]
    return sorted(found, key=lambda one: one.protocol["which"] != "test")


def write_ranker_page(evaluations: Sequence[RankerEvaluation], out_html: str | Path, *, title: str = "") -> Path:
    """One section for each evaluation."""
    first = evaluations[0]
    return write_page(
        out_html,
        "ranker.html",
        title=title or f"{data_title(first.protocol['dataset'])} · {model_title(first.name)}",
        sections=[_section(one) for one in evaluations],
    )


def _section(one: RankerEvaluation) -> dict[str, Any]:
    names = [name for name in NAMES if any(name in metrics for metrics in one.metrics.values())]
    found = one.protocol
    return {
        "heading": f"{model_title(one.name)}, {found['which']} exposures",
        "head": [NAMES[name] for name in names],
        "rows": [(task, [metrics.get(name) for name in names]) for task, metrics in one.metrics.items()],
        "protocol": f"{found['dataset']}, {found['split']}: {found['rows']:,} of {found['users']:,} users in "
        f"{found['requests']:,} requests; history ends before the request; {found['max_history']} events read",
        "reliability": one.reliability,
    }
