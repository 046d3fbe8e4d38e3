"""The report's plots, each an inline SVG string. matplotlib is imported when the first one is drawn.

Text stays text in the SVG (it takes the page's font and scales), nothing refers to the outside, and equal input gives
equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidera.eval.evaluation import Evaluation

COLORS = ("#2b5fc9", "#e07b24", "#2e9e6b", "#a4489c", "#7a7f87", "#c43d3d")
SLICE_ORDER = {"popularity": ("head", "mid", "tail", "cold"), "history": ("0", "1-4", "5-9", "10-19", "20-49", "50+")}
DASHES = ("-", "--", ":")
MIN_SLICE_ROWS = 30  # the interval of fewer rows would be wider than the plot
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # label -> (x, y)


def curves(title: str, groups: Mapping[str, Curves], x_label: str, y_label: str, *, markers: bool = False) -> str:
    """Lines over a common x, a colour for each group and a dash for each line in it; long ones are thinned."""
    figure, axes = _figure(title, x_label, y_label)
    num_lines = 0
    for (group, lines), color in zip(groups.items(), _colors(), strict=False):
        for (name, (x, y)), dash in zip(lines.items(), DASHES, strict=False):
            step = max(1, len(x) // 600)
            label, marker = " ".join(part for part in (group, name) if part), "o" if markers else None
            axes.plot(x[::step], y[::step], color=color, linestyle=dash, label=label, marker=marker, markersize=3.5)
            num_lines += 1
    axes.margins(x=0.02)
    _legend(axes, num_lines)
    return _svg(figure, title)


def slice_bars(title: str, runs: Sequence[Evaluation], seen: str, kind: str, metric: str) -> str:
    """One group of bars for each slice, one bar for each run, with 95 % intervals."""
    slices = [run.slices[seen][kind] for run in runs]
    names = drawn_slices(runs, seen, kind)
    x_label = {"popularity": "target by training events", "history": "events in the history"}[kind]
    figure, axes = _figure(title, x_label, metric)
    width = 0.8 / len(runs)
    for place, (run, found, color) in enumerate(zip(runs, slices, _colors(), strict=False)):
        shown = [(spot, found[name].metrics[metric]) for spot, name in enumerate(names) if name in found]
        x = np.array([spot for spot, _ in shown]) + (place - (len(runs) - 1) / 2) * width
        values = np.array([estimate.value for _, estimate in shown])
        ends = np.array([[estimate.low, estimate.high] for _, estimate in shown]).T
        error = np.abs(ends - values)
        axes.bar(x, values, width * 0.92, color=color, label=run.name)
        axes.errorbar(x, values, yerr=error, fmt="none", ecolor="#30343a", elinewidth=0.9, capsize=2)
    rows = {name: max(found[name].rows for found in slices if name in found) for name in names}
    axes.set_xticks(range(len(names)), [f"{name}\n{rows[name]:,} rows" for name in names])
    axes.set_ylim(bottom=0)
    _legend(axes, len(runs))
    return _svg(figure, title)


def drawn_slices(runs: Sequence[Evaluation], seen: str, kind: str) -> list[str]:
    """Slices with enough rows to be drawn; all of them when none has."""
    found = [name for name in SLICE_ORDER[kind] if any(name in run.slices[seen][kind] for run in runs)]
    rows = {
        name: max(run.slices[seen][kind][name].rows for run in runs if name in run.slices[seen][kind]) for name in found
    }
    return [name for name in found if rows[name] >= MIN_SLICE_ROWS] or found


def interval_dots(
    title: str, x_label: str, arms: Sequence[str], values: Sequence[tuple[float, float]], reference: str
) -> str:
    """A dot with its 95 % interval (value, half width) for each arm, a line through the reference's dot."""
    figure, axes = _figure(title, x_label, "")
    figure.set_size_inches(4.9, 1.1 + 0.3 * len(arms))
    shown = [(place, value, width) for place, (value, width) in enumerate(values) if np.isfinite(value)]
    for place, value, width in shown:
        color = COLORS[0] if arms[place] == reference else "#30343a"
        axes.errorbar(value, place, xerr=width if np.isfinite(width) else 0, fmt="o", color=color, capsize=2.5,
                      markersize=5, elinewidth=1.2)  # fmt: skip
        if arms[place] == reference:
            axes.axvline(value, color=COLORS[0], linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    positive = [value - width for _, value, width in shown if np.isfinite(width)]
    ends = [value for _, value, _ in shown]
    if positive and min(positive) > 0 and max(ends) > 4 * min(ends):  # an oracle beside the rest
        axes.set_xscale("log")
        ticks = [lead * 10.0**power for power in range(-3, 7) for lead in (1, 2, 5)]
        kept = [tick for tick in ticks if min(positive) * 0.8 <= tick <= max(ends) * 1.25]
        axes.set_xticks(kept, [f"{tick:g}" for tick in kept])
        axes.minorticks_off()
    return _svg(figure, title)


def frontier(
    title: str, points: Mapping[str, tuple[float, float, float, float]], x_label: str, y_label: str, reference: str
) -> str:
    """Named points with 95 % intervals in both directions: (x, half width, y, half width); the reference is at 0, 0."""
    figure, axes = _figure(title, x_label, y_label)
    for (name, (x, x_half, y, y_half)), color in zip(points.items(), _colors(), strict=False):
        marker = "D" if name == reference else "o"
        axes.errorbar(x, y, xerr=x_half, yerr=y_half, fmt=marker, color=color, capsize=2.5, markersize=5,
                      elinewidth=1.0, label=name)  # fmt: skip
    axes.axhline(0, color="#c5cad1", linewidth=0.9)
    axes.axvline(0, color="#c5cad1", linewidth=0.9)
    axes.margins(0.12)
    _legend(axes, len(points))
    return _svg(figure, title)


def code_usage(title: str, codes: np.ndarray, level_sizes: Sequence[int]) -> str:
    """Items behind each code of each level, most used first: a flat line is a well used level."""
    figure, axes = _figure(title, "codes of the level, most used first (share)", "items per code")
    for level, (size, color) in enumerate(zip(level_sizes, _colors(), strict=False)):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        share = counts[counts > 0] / counts.sum()
        perplexity = float(np.exp(-(share * np.log(share)).sum()))
        label = f"level {level + 1}: {(counts > 0).sum():,} of {size:,} used, perplexity {perplexity:,.0f}"
        axes.step(np.linspace(0, 1, size), counts, where="mid", color=color, label=label)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    _legend(axes, 2)
    return _svg(figure, title)


def latency_histogram(title: str, runs: Sequence[Evaluation]) -> str:
    """CPU milliseconds of single requests."""
    timed = [run for run in runs if run.latency.get("cpu_ms")]
    figure, axes = _figure(title, "CPU milliseconds for one request", "requests")
    values = np.concatenate([run.latency["cpu_ms"] for run in timed])
    low, high = max(float(values.min()), 1e-3), max(float(values.max()), 2e-3)
    wide = high / low > 20  # a scorer beside a generator: only a logarithmic axis shows both
    bins = np.geomspace(low, high * 1.001, 41) if wide else np.linspace(low * 0.95, high * 1.02, 41)
    for run, color in zip(timed, _colors(), strict=False):
        label = f"{run.name}: median {run.latency['cpu_ms_p50']:.2f}, p95 {run.latency['cpu_ms_p95']:.2f} ms"
        axes.hist(run.latency["cpu_ms"], bins=bins, color=color, alpha=0.65, label=label)
    if wide:
        axes.set_xscale("log")
        ticks = [lead * 10.0**power for power in range(-3, 6) for lead in (1, 2, 5)]
        shown = [tick for tick in ticks if low <= tick <= high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
    _legend(axes, 2)
    return _svg(figure, title)


def _colors() -> Any:
    while True:
        yield from COLORS


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#1f2328", pad=10)
    axes.set_xlabel(x_label, color="#57606a")
    axes.set_ylabel(y_label, color="#57606a")
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5cad1")
    axes.tick_params(colors="#57606a", labelsize=9)
    return figure, axes


def _legend(axes: Any, num_entries: int) -> None:
    """Below the plot, so that it never covers a curve; none for a single unnamed entry."""
    if num_entries > 1:
        handles, labels = axes.get_legend_handles_labels()
        longest = max(map(len, labels))
        columns = 1 if longest > 32 else min(2 if longest > 14 else 4, len(labels))
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _svg(figure: Any, title: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"""(font(?:-family)?: ?(?:[^;"']*?px )?)'DejaVu Sans'[^;"]*""", r"\1inherit", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).replace("xlink:href", "href")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None, "matplotlib writes a viewBox"
    text = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(title)}">' + text[text.index(">") + 1 :]
    # ids of clip paths and glyphs are unique inside one figure only
    salt = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'id="', f'id="{salt}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{salt}-", text)
    return text
