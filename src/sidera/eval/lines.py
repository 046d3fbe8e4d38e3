"""An evaluation in a few lines for the terminal: the main figures, with their protocol and intervals."""

from __future__ import annotations

from sidera import console
from sidera.eval.bootstrap import Estimate
from sidera.eval.evaluation import Evaluation, fit_of
from sidera.eval.ranker_evaluation import RankerEvaluation


def evaluation_lines(result: Evaluation | RankerEvaluation) -> str:
    """The main figures with their protocol, for the terminal."""
    protocol = result.protocol
    if isinstance(result, RankerEvaluation):
        return ranker_lines(result)
    lines = [
        f"evaluate: {protocol['which']} rows of {protocol['dataset']} ({protocol['split']}), {protocol['rows']:,} rows,"
        f" full ranking, item-level hits, fit: {fit_of(result)}"
    ]
    if ranking := result.latency.get("ranking"):
        lines.append(f"  {ranking}")
    names = [name for name in next(iter(result.metrics.values())) if name.startswith(("recall", "ndcg"))]
    rows = [
        (name, *(cell for seen in result.metrics for cell in estimate_cells(result.metrics[seen][name])))
        for name in names
    ]
    header = ["metric", *(cell for seen in result.metrics for cell in (f"seen={seen}", "95 % interval"))]
    return "\n".join([*lines, console.table(header, rows, indent="  ")])


def ranker_lines(result: RankerEvaluation) -> str:
    """A row a task; rows such as "p:like" tell how the main task's score orders what another label says."""
    protocol = result.protocol
    line = (
        f"evaluate: {protocol['which']} exposures of {protocol['dataset']} ({protocol['split']}):"
        f" {protocol['rows']:,} of {protocol['users']:,} users"
    )
    names = list(dict.fromkeys(name for metrics in result.metrics.values() for name in metrics))
    rows = []
    for task, metrics in result.metrics.items():
        cells = (" ".join(estimate_cells(metrics[name])) if name in metrics else "" for name in names)
        rows.append((task, *cells))
    return "\n".join([line, console.table(["task", *names], rows, indent="  ")])


def estimate_cells(estimate: Estimate) -> tuple[str, str]:
    """Value and 95 % interval, as tables show them."""
    return f"{estimate.value:.4f}", f"[{estimate.low:.4f}, {estimate.high:.4f}]"
