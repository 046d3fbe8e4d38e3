"""Write what the documents show of the committed result files: ``python benchmarks/tables.py``.

The tables of docs/evidence/results.md, the chart and the cost table of the README. Nobody types a number into them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import RESULTS
from result_tables import put_between, update_document

ROOT = Path(__file__).resolve().parents[1]
TABLES = (
    "beauty_generator", "beauty_onerec", "beauty_sasrec", "beauty_tiger", "beauty_temporal", "beauty_field",
    "sports", "sports_onerec", "sports_tiger", "ml1m", "ml1m_attention",
)  # fmt: skip
CHART = ROOT / "docs" / "pictures" / "beauty.svg"
SHOWN = (("beauty_generator", ("sidera generator", "SASRec sampled softmax, tied")),
         ("beauty_onerec", ("OneRec, technical report", "OneRec-V2")),
         ("beauty_generator", ("item-kNN", "popularity")))  # fmt: skip
SHORT = {"sidera generator": "sidera's generator", "SASRec sampled softmax, tied": "SASRec",
         "OneRec, technical report": "OneRec"}  # fmt: skip
COSTS = (("Amazon Beauty", "beauty_generator"), ("Amazon Beauty", "beauty_onerec"), ("Amazon Sports", "sports"))


def result_files() -> list[Path]:
    """The result files that docs/evidence/results.md shows, in its order."""
    return [RESULTS / f"{name}.json" for name in TABLES]


def rows_of(name: str) -> dict[str, list[dict[str, Any]]]:
    """model -> its runs, one a seed; those that learned no validation events."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("details", record)["rows"]:
        if row.get("fit", "train") == "train":
            found.setdefault(row["model"], []).append(row)
    return found


def draw(path: Path) -> Path:
    """Recall@10 on Beauty in both seen modes: means over seeds, the mean of their 95 % intervals over users."""
    from sidera.pages.charts import dots
    from sidera.pages.standalone import write_svg

    figures = []
    for seen, words in (("keep", "seen items kept"), ("filter", "seen items left out")):
        rows = []
        for name, models in SHOWN:
            found = rows_of(name)
            for model in models:
                metrics = [row["metrics"][seen]["recall@10"] for row in found[model]]
                value, low, high = (sum(one[end] for one in metrics) / len(metrics) for end in ("value", "low", "high"))
                rows.append((SHORT.get(model, model), (value, low, high), model == "sidera generator"))
        figures.append(dots(f"Amazon Beauty: Recall@10, {words}", "22,363 users, 95 % intervals", rows, zero=True))
    return write_svg(figures, path)


def costs() -> str:
    """Markdown: size and training time of what the tables show, one thread."""
    lines = ["| model | data | users × items | parameters | training, CPU-minutes |", "|---|---|---:|---:|---:|"]
    for data, name in COSTS:
        record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        protocol = record["details"]["protocol"]
        size = f"{protocol['rows_in_split']:,} × {protocol['num_items']:,}"
        for model, runs in rows_of(name).items():
            trainings = [run["info"]["training"] for run in runs]
            if "cpu_minutes" not in trainings[0] or (name == "beauty_onerec" and "SASRec" in model):
                continue
            minutes = sum(one["cpu_minutes"] for one in trainings) / len(trainings)
            lines.append(f"| {model} | {data} | {size} | {trainings[0]['parameters']:,} | {minutes:.1f} |")
    return "\n".join(lines)


def at_size() -> str:
    """Markdown: time and memory of whole commands, from the claims that measured them."""
    lines = ["| what | size | wall, s | CPU, s | memory, GiB |", "|---|---|---:|---:|---:|"]
    if hour := _claim("first_hour"):
        value, size = hour["value"], f"{hour['context']['users']} users, {hour['context']['events']:,} events"
        cost = f"{value['seconds']:.0f} | {value['cpu_seconds']:.0f}"
        lines.append(f"| own CSV to the first list, three commands | {size} | {cost} | |")
    if read := _claim("importing"):
        value = read["value"]
        cost = f"{value['wall_s']:.0f} | {value['cpu_s']:.0f} | {value['peak_mib'] / 1024:.1f}"
        lines.append(f"| `sidera import` of a CSV | {value['events']:,} events | {cost} |")
    if large := _claim("at_size"):
        size = f"{large['context']['users']:,} users, {large['context']['items']:,} items"
        for name, one in large["value"].items():
            cost = f"{one['wall_s']:.0f} | {one['cpu_s']:.0f} | {one['peak_gib']:.1f}"
            lines.append(f"| `any/{name}`, log to the first list | {size} | {cost} |")
    return "\n".join(lines)


def _claim(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def main() -> None:

    update_document(ROOT / "docs" / "evidence" / "results.md", result_files())
    put_between(ROOT / "README.md", "costs", costs())
    put_between(ROOT / "README.md", "size", at_size())
    print(f"docs/evidence/results.md, README.md and {draw(CHART).relative_to(ROOT)} are current")


if __name__ == "__main__":
    main()
