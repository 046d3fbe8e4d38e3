"""Results tables in Markdown, generated from committed result files; nobody types a number into a document.

A result file is JSON: ``{"title", "protocol", "rows": [...], ...}``; one row is one run (one seed) of one model:
``{"model", "seed", "metrics": {"keep": {"recall@10": {"value", "low", "high"}, ...}, "filter": {...}}, "info"}``.
:func:`result_file` makes one from evaluations. Rows of one model with different seeds become mean ± standard deviation;
a single run shows its 95 % interval over users. These are different things, so the table says which it shows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.core import InputError
from sidera.eval.compare import check_comparable
from sidera.eval.evaluation import Evaluation, fit_of, protocol_line

SPREAD = "± is the standard deviation over seeds where there are several, else half of the 95 % interval over users."
COLUMNS = (("keep", "recall@10"), ("keep", "ndcg@10"), ("filter", "recall@10"), ("filter", "ndcg@10"))


def result_file(title: str, evaluations: Sequence[Evaluation], **context: Any) -> dict[str, Any]:
    """The content of a result file; ``context``: version, machine, command, trials, whatever makes it reproducible."""
    if not evaluations:
        raise InputError(f"no evaluations for the result file {title!r}", allowed="one or more")
    for run in evaluations[1:]:
        check_comparable(evaluations[0], run, (evaluations[0].name, run.name))
    rows = [
        {"model": run.name, "seed": run.info.get("seed"), "metrics": run.summary()["metrics"], "info": run.info}
        | {"lists": run.lists, "kind": run.protocol["kind"], "max_history": run.protocol["max_history"]}
        | {"fit": fit_of(run)}
        for run in evaluations
    ]
    return {"title": title, **context, "protocol": evaluations[0].protocol, "rows": rows}


def results_table(result_files: Sequence[str | Path]) -> str:
    """Markdown: for every file its title, its protocol line and one line per model, in the file's order."""
    blocks = []
    for file in result_files:
        result = _read(Path(file))
        header = ["model", "fit"] + [f"{_short(metric)} {seen}" for seen, metric in COLUMNS] + ["seeds"]
        lines = [f"**{result['title']}** ({protocol_line(result['protocol'])})", ""]
        lines += ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
        models: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in result["rows"]:  # a refit is newer than the oldest results
            models.setdefault((row["model"], row.get("fit", "train")), []).append(row)
        for (model, fit), rows in models.items():
            cells = [_cell(rows, seen, metric) for seen, metric in COLUMNS]
            lines.append("| " + " | ".join([model, fit, *cells, str(len(rows))]) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, SPREAD])


def update_document(document: str | Path, result_files: Sequence[str | Path], *, check: bool = False) -> bool:
    """Put the table between the markers of ``document``; True when it was current already."""
    return put_between(document, "results", results_table(result_files), check=check)


def put_between(document: str | Path, name: str, text: str, *, check: bool = False) -> bool:
    """Put ``text`` between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; True when it was there already.

    ``check`` writes nothing: a test calls it so that a document cannot disagree with the results.
    """
    document, begin, end = Path(document), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        found = document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {str(document)!r}: {error.strerror}") from None
    if found.count(begin) != 1 or found.count(end) != 1 or found.index(begin) > found.index(end):
        raise InputError(f"{document} has no place for the table", fix=f"add the lines {begin} and {end}, once each")
    block = f"{begin}\n{text}\n{end}"
    updated = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: block, found, flags=re.DOTALL)
    if updated != found and not check:
        write_text(document, updated)
    return updated == found


def _read(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        result = result.get("details", result)  # benchmarks put the table's content below their own line
        _ = result["title"], result["protocol"]["rows"], [row["model"] for row in result["rows"]]
    except OSError as error:
        raise InputError(f"cannot read result file {str(file)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is not a result file", allowed="JSON with title, protocol, rows") from None
    return result


def _cell(rows: Sequence[Mapping[str, Any]], seen: str, metric: str) -> str:
    found = [row["metrics"][seen][metric] for row in rows if metric in row["metrics"].get(seen, {})]
    if not found:
        return "–"
    values = [one["value"] for one in found]
    mean = sum(values) / len(values)
    if len(values) > 1:
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    else:
        spread = (found[0]["high"] - found[0]["low"]) / 2
    return f"{mean:.4f} ± {spread:.4f}"


def _short(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{ {'recall': 'R', 'ndcg': 'N', 'mrr': 'MRR'}.get(name, name) }@{k}"
