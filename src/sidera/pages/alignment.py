"""The page that ``sidera align`` ends with: every policy, every judge, and what was given up for it.

Made from plain numbers: the record that alignment leaves (``alignment.json``) and, where the log is simulated, the
online test. Differences are paired: by row for recall, by user for the online test.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidera.lab.alignment import gap_closed
from sidera.lab.online import OnlineTest
from sidera.pages import charts
from sidera.pages.charts import Figure
from sidera.pages.online import differences, levels_figures, levels_note
from sidera.pages.render import number, write_page

# figure -> (heading, whether less of it than the reference is a loss)
FIGURES = {
    "reward": ("Reward", False),
    "judge": ("Judge", False),
    "recall@50_long_view": ("Recall@50, long views", True),
    "recall@50_like": ("Recall@50, likes", True),
    "coverage": ("Coverage, T = 1", True),
    "entropy": ("Entropy, nats", False),
    "legality_sample": ("Legal, free samples", True),
    "legality_beam": ("Legal, free beam", True),
    "top1_share": ("Share of the top 1 %", False),
}
CURVES = {
    "reward": "Reward of rollouts",
    "entropy": "Entropy, nats",
    "coverage": "Coverage, T = 1",
    "recall@50_long_view": "Recall@50, long views",
    "grad_norm": "Gradient norm",
    "ratio_q99": "Ratio to the snapshot, 99 %",
}
TOLERATED = 0.9  # of the reference's coverage or legality; below, it counts as given up


def write_alignment_page(record: Mapping[str, Any], online: OnlineTest | None, path: str | Path) -> Path:
    """Write the page and return its path."""
    served = None
    if online is not None:
        costs = {name: f"{value:.2f}" for name, value in online.setting.get("ms_per_answer", {}).items()}
        served = {"levels": levels_figures(online), "note": levels_note(online), "table": differences(online)}
        served["costs"] = costs
    return write_page(
        path,
        "alignment.html",
        title="Alignment",
        reference=record["reference"],
        summary=_summary(record, online),
        served=served,
        judges=_judges(record),
        frontier=_frontier(record, online),
        curves=_curves(record),
        rankers=record["rankers"],
        settings=_settings(record),
    )


def given_up(record: Mapping[str, Any], name: str) -> list[str]:
    """In words: the figures in which a policy is clearly behind the reference."""
    own, reference = record["policies"][name], record["policies"][record["reference"]]
    lines = []
    for label, (gap, half) in own["recall_differences"].items():
        if gap < -half:
            lines.append(f"recall@50 on {label.replace('_', ' ')}: {gap:+.4f} ± {half:.4f}")
    for figure in ("coverage", "legality_sample", "legality_beam"):
        before, now = reference["figures"].get(figure), own["figures"].get(figure)
        if before is not None and now is not None and now < TOLERATED * before:
            lines.append(f"{FIGURES[figure][0].lower()}: {before:.3f} to {now:.3f}")
    return lines


def _summary(record: Mapping[str, Any], online: OnlineTest | None) -> list[tuple[str, str]]:
    lines = []
    for name, policy in record["policies"].items():
        if policy["role"] != "arm":
            continue
        parts = []
        if online is not None and name in online.differences:
            for metric, words in (("utility", "true utility"), ("returned_1", "returns")):
                one = online.differences[name][metric]
                parts.append(f"{words} {100 * one.relative:+.1f} ± {100 * one.relative_half_width:.1f} %")
            if "oracle" in online.levels:
                parts.append(f"{100 * gap_closed(online, name):.0f} % of the way to the oracle")
        lost = given_up(record, name)
        parts.append("given up: " + "; ".join(lost) if lost else "nothing clearly given up")
        if policy["training"].get("stopped"):
            parts.append(policy["training"]["stopped"])
        lines.append((name, ", ".join(parts)))
    return lines


def _judges(record: Mapping[str, Any]) -> dict[str, Any]:
    reference = record["reference"]
    names = [name for name in FIGURES if any(name in one["figures"] for one in record["policies"].values())]
    rows = []
    for policy, one in record["policies"].items():
        cells = []
        for name in names:
            gap = one["recall_differences"].get(name.removeprefix("recall@50_")) if name.startswith("recall") else None
            cells.append({
                "text": number(float(one["figures"][name]), 3) if name in one["figures"] else "–",
                "small": f"{gap[0]:+.4f} ± {gap[1]:.4f}" if gap is not None else "",
                "set_off": gap is not None and abs(gap[0]) > gap[1],
            })  # fmt: skip
        rows.append((policy, cells))
    test = record["policies"][reference]["figures"]
    counted = ", ".join(f"{int(v):,} {n[5:].replace('_', ' ')}" for n, v in test.items() if n.startswith("rows_"))
    return {"head": ["policy", *(FIGURES[name][0] for name in names)], "rows": rows, "counted": counted}


def _frontier(record: Mapping[str, Any], online: OnlineTest | None) -> Figure:
    """Gain against loss: what each policy has of utility (or of the judge's) and of recall, less the reference."""
    points = {}
    reference = record["reference"]
    base = record["policies"][reference]["figures"]
    for name, one in record["policies"].items():
        gap = one["recall_differences"].get("long_view") or next(iter(one["recall_differences"].values()), (0.0, 0.0))
        if online is not None:
            utility = online.differences.get(name, {}).get("utility")
            up = (100 * utility.relative, 100 * utility.relative_half_width) if utility is not None else (0.0, 0.0)
        else:
            up = (100 * (one["figures"]["judge"] / base["judge"] - 1), 0.0)
        points[name] = (gap[0], gap[1], *up)
    y_label = "true utility, %" if online is not None else "judge's p, %"
    return charts.frontier("Gain against recall", points, "recall@50 on long views", y_label, reference)


def _curves(record: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for key, heading in CURVES.items():
        lines: dict[str, charts.Curves] = {}  # all policies: a colour stays a policy's
        for name, one in record["policies"].items():
            training = one["training"]
            start = [(0, training["start"][key])] if key in training.get("start", {}) else []
            points = start + [(check["step"], check[key]) for check in training.get("checks", []) if key in check]
            lines[name] = {"": ([x for x, _ in points], [y for _, y in points])} if points else {}
        if any(lines.values()):
            figures.append(charts.curves(heading, lines, "step", "", markers=True))
    return figures


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {
        f"users whose events train {name}": count for name, count in record["users"].items() if name != "audience"
    }
    rows["users who are served"] = record["users"]["audience"]
    for name, one in record["policies"].items():
        config = one.get("config", {})
        if one["role"] == "arm":
            shown = ("method", "steps", "ntp", "ntp_weight", "group", "requests", "rollout", "level", "lr", "seed")
            rows[name] = ", ".join(f"{key} {config[key]}" for key in shown if config.get(key) is not None)
        elif config:
            rows[name] = f"control, {config['steps']} steps, lr {config['lr']}"
        if one["training"]:
            rows[f"{name}, CPU seconds"] = one["training"]["cpu_seconds"]
    return rows
