"""The page about an online test: levels with intervals, differences from the reference arm, what went wrong.

Made from an :class:`OnlineTest` alone, so its JSON is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sidera.lab.online import OnlineTest, troubles
from sidera.pages.charts import Figure, dots
from sidera.pages.names import model_title
from sidera.pages.render import write_page

# metric -> (heading, unit of the axis)
SHOWN = {
    "watch_time": ("Watch time", "seconds per user"),
    "utility": ("True utility", "items worth it per user"),
    "session_length": ("Session length", "items per active day"),
    "returned_1": ("Back on the next day", "share of users"),
    "returned_7": ("Back within 7 days", "share of users"),
    "cold_share": ("Cold-start exposure", "share of items that the log never showed"),
    "creator_diversity": ("Creator diversity", "chance that two items differ in creator"),
    "topic_diversity": ("Topic diversity", "chance that two items differ in topic"),
}
REST = {"num_items": "Items shown", "clicks": "Clicks", "likes": "Likes", "dislikes": "Dislikes",
        "active_days": "Active days"}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    text: str
    width: str
    clear: bool


@dataclass(frozen=True)
class Differences:
    """Every arm less the reference, paired by user."""

    reference: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]


def write_online_page(result: OnlineTest, path: str | Path, *, title: str = "Online test") -> Path:
    """Write the page about ``result`` and return its path."""
    setting = {key.replace("_", " "): str(value) for key, value in result.setting.items()}
    setting |= {f"CPU seconds, {arm}": f"{value:,.1f}" for arm, value in result.cpu_seconds.items()}
    return write_page(
        path,
        "online.html",
        title=title,
        headline=headline(result),
        levels=levels_figures(result),
        levels_note=levels_note(result),
        reference=result.reference,
        table=differences(result),
        troubles=[(arm, line) for arm in result.arms for line in troubles(result, arm)],
        setting=setting,
    )


def headline(result: OnlineTest) -> str:
    """The arm with the most true utility, brackets that know the truth left aside, against the reference."""
    arms = [arm for arm in result.differences if not arm.startswith(("oracle", "random", "logger", "popularity"))]
    arms = [arm for arm in arms if math.isfinite(result.differences[arm]["utility"].relative)]
    reference = model_title(result.reference)
    if not arms:
        return f"{result.setting['users']:,} users served by {reference} and {len(result.differences)} other arms."
    best = max(arms, key=lambda arm: result.differences[arm]["utility"].value)
    utility = result.differences[best]["utility"]
    gap, half = 100 * utility.relative, 100 * utility.relative_half_width
    span = f"[{gap - half:+.1f}, {gap + half:+.1f}]"
    if not utility.clear:
        return f"{model_title(best)} and {reference} give users about the same: true utility {gap:+.1f} % {span}."
    word = "more" if gap > 0 else "less"
    low, high = sorted((abs(gap - half), abs(gap + half)))
    return (
        f"{model_title(best)} gives its users {abs(gap):.1f} % [{low:.1f}, {high:.1f}] {word} true utility than"
        f" {reference}."
    )


def levels_figures(result: OnlineTest) -> list[Figure]:
    """Dots with intervals, a figure for each metric that was measured."""
    figures = []
    for metric, (heading, unit) in SHOWN.items():
        rows = []
        for arm in result.arms:
            value, half = result.levels[arm][metric]
            rows.append((model_title(arm), (value, value - half, value + half), arm == result.reference))
        if any(math.isfinite(value) for _, (value, _, _), _ in rows):
            figures.append(dots(heading, unit, rows, digits=3, mark=True))
    return figures


def levels_note(result: OnlineTest) -> str:
    days = result.setting["days"]
    note = (
        f"Means over the users with 95 % intervals, {days} day(s) of test. The intervals of two arms may overlap where "
        "the paired difference below is clear: both met the same users in the same luck. True utility is in no log."
    )
    if days == 1:
        return f"{note} A test of one day cannot tell who comes back."
    return f"{note} Returns reach as far as the test does: {days - 1} day(s)." if days < 8 else note


def differences(result: OnlineTest) -> Differences:
    names = {**{metric: heading for metric, (heading, _) in SHOWN.items()}, **REST}
    rows = []
    for arm, by_metric in result.differences.items():
        cells = []
        for metric in names:
            one = by_metric[metric]
            if not math.isfinite(one.value):
                cells.append(Cell("–", "", False))
            elif not math.isfinite(one.relative):
                cells.append(Cell(f"{one.value:+.3g}", f"{one.half_width:.2g}", one.clear))
            else:
                width = f"{100 * one.relative_half_width:.1f}"
                cells.append(Cell(f"{100 * one.relative:+.1f} %", width, one.clear))
        rows.append((model_title(arm), cells))
    return Differences(model_title(result.reference), ["arm", *names.values()], rows)
