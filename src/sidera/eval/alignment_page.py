"""The page that ``sidera align`` ends with: every policy, every judge, and what was given up for it.

Made from plain numbers: the record that alignment leaves (``alignment.json``) and, where the log is simulated, the
online test. Differences are paired: by row for recall, by user for the online test.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.eval import plots
from sidera.eval.alignment_online import gap_closed
from sidera.eval.online import OnlineTest
from sidera.eval.online_page import differences_table, levels_figures
from sidera.eval.page import page

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
    body = [_section("What came of it", _summary(record, online))]
    if online is not None:
        body.append(_section("Served users", _online(record, online)))
    body += [
        _section("Every judge", _judges(record)),
        _section("Frontier", _frontier(record, online)),
        _section("On the way", _curves(record)),
        _section("The reward", _rankers(record)),
        _section("Settings", _settings(record)),
    ]
    write_text(path, page("Alignment", "".join(body), "sidera align"))
    return Path(path)


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


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{body}</section>"


def _summary(record: Mapping[str, Any], online: OnlineTest | None) -> str:
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
        lines.append(f"<li><b>{html.escape(name)}</b>: {html.escape(', '.join(parts))}</li>")
    note = f"Against {record['reference']}, which was trained for the same steps without a reward."
    return f"<ul>{''.join(lines)}</ul><p class='note'>{html.escape(note)}</p>"


def _online(record: Mapping[str, Any], online: OnlineTest) -> str:
    costs = online.setting.get("ms_per_answer", {})
    cells = "".join(f"<tr><th scope='row'>{html.escape(n)}</th><td>{v:.2f}</td></tr>" for n, v in costs.items())
    heading = "<h3>CPU milliseconds of an answer</h3>"
    table = f"{heading}<table class='facts'><tbody>{cells}</tbody></table>" if cells else ""
    return levels_figures(online) + differences_table(online) + table


def _judges(record: Mapping[str, Any]) -> str:
    reference = record["reference"]
    names = [name for name in FIGURES if any(name in one["figures"] for one in record["policies"].values())]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("policy", *(FIGURES[name][0] for name in names)))
    rows = []
    for policy, one in record["policies"].items():
        cells = []
        for name in names:
            cell = f"{one['figures'][name]:.3f}" if name in one["figures"] else "–"
            gap = one["recall_differences"].get(name.removeprefix("recall@50_")) if name.startswith("recall") else None
            mark = " class='best'" if gap is not None and abs(gap[0]) > gap[1] else ""
            if gap is not None:
                cell += f"<small>{gap[0]:+.4f} ± {gap[1]:.4f}</small>"
            cells.append(f"<td{mark}>{cell}</td>")
        rows.append(f"<tr><th scope='row'>{html.escape(policy)}</th>{''.join(cells)}</tr>")
    test = record["policies"][reference]["figures"]
    counted = ", ".join(f"{int(v):,} {n[5:].replace('_', ' ')}" for n, v in test.items() if n.startswith("rows_"))
    note = (
        f"Test rows that no step and no gate looked at ({counted}), full ranking, item-level hits, seen items kept. "
        f"Small: difference from {reference} with half of its 95 % interval, paired by row, set off where it leaves 0 "
        "out. Reward and judge: mean p of the ten best items, from the network that rewarded and from one that "
        "learned from other users."
    )
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='note'>{html.escape(note)}</p>"
    )


def _frontier(record: Mapping[str, Any], online: OnlineTest | None) -> str:
    """Gain against loss: what each policy has of utility (or of the judge's) and of recall, less the reference."""
    points = {}
    reference = record["reference"]
    base = record["policies"][reference]["figures"]
    for name, one in record["policies"].items():
        gap = one["recall_differences"].get("long_view") or next(iter(one["recall_differences"].values()), (0.0, 0.0))
        if online is not None:
            found = online.differences.get(name, {}).get("utility")
            up = (100 * found.relative, 100 * found.relative_half_width) if found is not None else (0.0, 0.0)
        else:
            up = (100 * (one["figures"]["judge"] / base["judge"] - 1), 0.0)
        points[name] = (gap[0], gap[1], *up)
    y_label = "true utility, %" if online is not None else "judge's p, %"
    plot = plots.frontier("Gain against recall", points, "recall@50 on long views", y_label, reference)
    note = f"Differences from {reference} with 95 % intervals; up and to the right is better. Recall is of long views."
    return f"<div class='figures'><figure>{plot}</figure></div><p class='note'>{html.escape(note)}</p>"


def _curves(record: Mapping[str, Any]) -> str:
    figures = []
    for key, heading in CURVES.items():
        lines: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}  # all: a colour stays a policy's
        for name, one in record["policies"].items():
            training = one["training"]
            start = [(0, training["start"][key])] if key in training.get("start", {}) else []
            points = start + [(check["step"], check[key]) for check in training.get("checks", []) if key in check]
            lines[name] = {"": ([x for x, _ in points], [y for _, y in points])} if points else {}
        if any(lines.values()):
            figures.append(f"<figure>{plots.curves(heading, lines, 'step', '', markers=True)}</figure>")
    note = "Measured on validation rows. A rising reward says nothing about what was lost: the gates watch the others."
    return f"<div class='figures'>{''.join(figures)}</div><p class='note'>{note}</p>"


def _rankers(record: Mapping[str, Any]) -> str:
    cards = []
    for name, info in record["rankers"].items():
        aucs = info["aucs"].items()
        rows = "".join(f"<tr><th scope='row'>{html.escape(task)}</th><td>{value:.3f}</td></tr>" for task, value in aucs)
        facts = f"{info['users']:,} users, {info['steps']:,} steps, {info['cpu_seconds']:.0f} CPU-seconds"
        table = f"<table class='facts'><tbody>{rows}</tbody></table>"
        cards.append(f"<div class='card'><h3>{html.escape(name)} <span>{facts}</span></h3>{table}</div>")
    note = "AUC on held-out users: every tower for its label, and p for each label. p is no chance of anything."
    return f"<div class='cards'>{''.join(cards)}</div><p class='note'>{note}</p>"


def _settings(record: Mapping[str, Any]) -> str:
    rows = {f"users who teach {name}": count for name, count in record["users"].items() if name != "audience"}
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
    cells = "".join(
        f"<tr><th scope='row'>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table class='facts'><tbody>{cells}</tbody></table>"
