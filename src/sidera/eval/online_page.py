"""The page about an online test: levels with intervals, differences from the reference arm, what went wrong.

Self-contained like the run report, and made from an :class:`OnlineTest` alone, so its JSON is enough.
"""

from __future__ import annotations

import html
from pathlib import Path

from sidera.artifacts import write_text
from sidera.eval import plots
from sidera.eval.online import OnlineTest, troubles
from sidera.eval.page import page

# metric -> (heading, unit of the axis)
SHOWN = {
    "watch_time": ("Watch time", "seconds per user"),
    "utility": ("True utility", "items worth it per user"),
    "session_length": ("Session length", "items per active day"),
    "returned_1": ("Back on the next day", "share of users"),
    "returned_7": ("Back within 7 days", "share of users"),
    "cold_share": ("Cold-start exposure", "share of items shown that the log never showed"),
    "creator_diversity": ("Creator diversity", "chance that two items differ in creator"),
    "topic_diversity": ("Topic diversity", "chance that two items differ in topic"),
}
REST = {"num_items": "Items shown", "clicks": "Clicks", "likes": "Likes", "dislikes": "Dislikes",
        "active_days": "Active days"}  # fmt: skip


def write_online_page(result: OnlineTest, path: str | Path, *, title: str = "Online test") -> Path:
    """Write the page about ``result`` and return its path."""
    body = [
        _section("Levels", levels_figures(result)),
        _section(f"Differences from {result.reference}", differences_table(result)),
        _section("Faults and lost users", _troubles(result)),
        _section("Setting", _setting(result)),
    ]
    write_text(path, page(title, "".join(body), "sidera online test in a simulated world"))
    return Path(path)


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{body}</section>"


def levels_figures(result: OnlineTest) -> str:
    """Dots with intervals, a plot for each metric."""
    figures = [
        plots.interval_dots(heading, unit, result.arms, [result.levels[arm][metric] for arm in result.arms],
                            result.reference)
        for metric, (heading, unit) in SHOWN.items()
        if any(result.levels[arm][metric][0] == result.levels[arm][metric][0] for arm in result.arms)
    ]  # fmt: skip
    shown = "".join(f"<figure>{figure}</figure>" for figure in figures)
    days = result.setting["days"]
    note = (
        f"Means over the users with 95 % intervals, {days} day(s) of test. The intervals of two arms may overlap where "
        "the paired difference below is clear: both met the same users in the same luck. True utility is in no log."
    )
    if days == 1:
        note += " A test of one day cannot tell who comes back."
    elif days < 8:
        note += f" Returns reach as far as the test does: {days - 1} day(s)."
    return f"<div class='figures'>{shown}</div><p class='note'>{note}</p>"


def differences_table(result: OnlineTest) -> str:
    """Every arm less the reference, paired by user."""
    names = {**{metric: heading for metric, (heading, _) in SHOWN.items()}, **REST}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("arm", *names.values()))
    body = []
    for arm, found in result.differences.items():
        cells = []
        for metric in names:
            one = found[metric]
            if one.value != one.value:
                cells.append("<td>–</td>")
                continue
            strong = " class='best'" if one.clear else ""
            if one.relative != one.relative:
                cells.append(f"<td{strong}>{one.value:+.3g}<small>±{one.half_width:.2g}</small></td>")
            else:
                width = f"±{100 * one.relative_half_width:.1f}"
                cells.append(f"<td{strong}>{100 * one.relative:+.1f} %<small>{width}</small></td>")
        body.append(f"<tr><th scope='row'>{html.escape(arm)}</th>{''.join(cells)}</tr>")
    if not body:
        return "<p class='note'>One arm: nothing to compare.</p>"
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<p class='note'>Arm less {html.escape(result.reference)} in per cent of it, half of the 95 % interval below, "
        "paired by user; set off where the interval leaves 0 out. Many cells are tested at once: expect one in twenty "
        "by chance. Where the reference's mean is 0 the difference is absolute.</p>"
    )


def _troubles(result: OnlineTest) -> str:
    lines = [
        f"<li><b>{html.escape(arm)}</b>: {html.escape(line)}</li>"
        for arm in result.arms
        for line in troubles(result, arm)
    ]
    if not lines:
        return "<p class='note'>None: every slot was filled with an item of the world, every user was served.</p>"
    note = "A slot that stays empty annoys like a skipped item; a lost user is served no more."
    return f"<ul>{''.join(lines)}</ul><p class='note'>{note}</p>"


def _setting(result: OnlineTest) -> str:
    rows = {**result.setting, **{f"CPU seconds, {arm}": value for arm, value in result.cpu_seconds.items()}}
    cells = "".join(
        f"<tr><th scope='row'>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table class='facts'><tbody>{cells}</tbody></table>"
