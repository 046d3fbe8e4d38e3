"""Charts as inline SVG. Colours are the style sheet's, so one chart serves light and dark; text stays text.

A chart is drawn 440 units wide, the width of a phone's column, and scales from there. Points that are not finite are
left out; what has nothing to draw is an empty frame that says so. Equal input gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from sidera.pages.axes import Axis, axis, tick_text

WIDTH, HEIGHT = 440, 264
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 44
SERIES = 8  # colours of the style sheet
MAX_POINTS = 400  # of a line; longer ones are thinned
Point = tuple[float, float]
Interval = tuple[float, float, float]  # value, low, high
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # label -> (x, y)


@dataclass(frozen=True)
class Key:
    """An entry of the legend: the number of a colour and a dash, and what they stand for."""

    series: int
    dash: int
    text: str


@dataclass(frozen=True)
class Figure:
    title: str
    body: Markup  # what is inside the <svg>
    height: float = HEIGHT
    legend: tuple[Key, ...] = ()

    @property
    def svg(self) -> Markup:
        box = f"0 0 {WIDTH} {self.height:g}"
        return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(box, self.title, self.body)


@dataclass
class Frame:
    """The plot area: axes, grid and what was drawn so far."""

    x: Axis
    y: Axis
    height: float = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    bottom: float = BOTTOM
    parts: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Room for the widest label of the y axis, and for its title beside it."""
        if self.left == LEFT:
            self.left = max(LEFT, 30 + 7.0 * max((len(tick_text(tick)) for tick in self.y.ticks()), default=1))

    def px(self, value: float) -> float:
        return round(self.left + self.x.share(value) * (WIDTH - self.left - self.right), 1)

    def py(self, value: float) -> float:
        return round(self.height - self.bottom - self.y.share(value) * (self.height - TOP - self.bottom), 1)

    def line(self, start: Point, end: Point, style: str) -> None:
        """Between two points of the picture, not of the axes."""
        (a, b), (c, d) = start, end
        self.parts.append(
            Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"/>').format(style, a, b, c, d)
        )

    def text(self, x: float, y: float, text: str, style: str = "tick", more: str = "") -> None:
        self.parts.append(Markup('<text class="{}" x="{:g}" y="{:g}"{}>{}</text>').format(style, x, y, more, text))

    def dot(self, x: float, y: float, style: str, radius: float = 4) -> None:
        self.parts.append(Markup('<circle class="dot {}" cx="{:g}" cy="{:g}" r="{:g}"/>').format(style, x, y, radius))

    def path(self, points: Sequence[Point], style: str, *, closed: bool = False) -> None:
        """Through points of the axes."""
        steps = " L".join(f"{self.px(x):g} {self.py(y):g}" for x, y in points)
        self.parts.append(Markup('<path class="{}" d="M{}{}"/>').format(style, steps, " Z" if closed else ""))

    def grid(self, x_label: str, y_label: str, *, x_ticks: bool = True, y_ticks: bool = True) -> None:
        floor, wall = self.height - self.bottom, WIDTH - self.right
        if y_ticks:
            for tick in self.y.ticks():
                self.line((self.left, self.py(tick)), (wall, self.py(tick)), "grid")
                self.text(self.left - 6, self.py(tick) + 4, tick_text(tick), "tick end")
        if x_ticks:
            for tick in self.x.ticks():
                if not y_ticks:
                    self.line((self.px(tick), TOP), (self.px(tick), floor), "grid")
                self.text(self.px(tick), floor + 16, tick_text(tick), "tick middle")
        self.line((self.left, floor), (wall, floor), "axis")
        if x_label:
            self.text((self.left + wall) / 2, self.height - 8, x_label, "label middle")
        if y_label:
            middle = (TOP + floor) / 2
            self.text(12, middle, y_label, "label middle", Markup(' transform="rotate(-90 12 {:g})"').format(middle))

    def figure(self, title: str, legend: Sequence[Key] = ()) -> Figure:
        keys = tuple(key for key in legend if key.text) if len(legend) > 1 else ()
        return Figure(title, Markup("").join(self.parts), self.height, keys)


def curves(title: str, groups: Mapping[str, Curves], x_label: str, y_label: str, *, markers: bool = False) -> Figure:
    """Lines over a common x, a colour for each group and a dash for each line in it."""
    lines = [
        (Key(group % SERIES, dash, " ".join(part for part in (label, name) if part)), _thinned(x, y))
        for group, (label, members) in enumerate(groups.items())
        for dash, (name, (x, y)) in enumerate(members.items())
    ]
    points = [point for _, line in lines for point in line]
    frame = Frame(axis((x for x, _ in points), margin=0.02), axis(y for _, y in points))
    frame.grid(x_label, y_label)
    for key, line in lines:
        if not line:
            continue
        frame.path(line, f"line s{key.series} d{key.dash % 3}")
        if markers or len(line) == 1:
            for x, y in line:
                frame.dot(frame.px(x), frame.py(y), f"s{key.series}", 2.5)
    return _or_empty(frame, points).figure(title, [key for key, line in lines if line])


def fitted(
    title: str, lines: Mapping[str, Curves], points: Mapping[str, Sequence[Point]], x_label: str, y_label: str
) -> Figure:
    """Curves over a logarithmic x, all lines of a label in one colour, and named points over them."""
    drawn = {label: [_thinned(x, y) for x, y in series.values()] for label, series in lines.items()}
    spots = [
        point for series in (*points.values(), *(line for many in drawn.values() for line in many)) for point in series
    ]
    frame = Frame(axis((x for x, _ in spots), log=True, margin=0.02), axis(y for _, y in spots))
    frame.grid(x_label, y_label)
    legend = []
    for number, (label, many) in enumerate(drawn.items()):
        for line in filter(None, many):
            frame.path(line, f"line s{number % SERIES} d{number // SERIES % 3}")
        legend.append(Key(number % SERIES, number // SERIES, label))
    for number, (label, series) in enumerate(points.items(), start=len(drawn)):
        for x, y in series:
            frame.dot(frame.px(x), frame.py(y), f"s{number % SERIES}")
        legend.append(Key(number % SERIES, 0, label))
    return _or_empty(frame, spots).figure(title, legend)


def dots(
    title: str,
    x_label: str,
    rows: Sequence[tuple[str, Interval, bool]],
    *,
    digits: int = 4,
    zero: bool = False,
    mark: bool = False,
) -> Figure:
    """A dot with its interval for each named row, its value at the right; rows that are set off have the first colour.

    ``mark``: a line through their dots, for others to be seen against.

    The axis is logarithmic where the largest value is more than four times the smallest interval's end (an oracle).
    """
    shown = [row for row in rows if math.isfinite(row[1][0])]
    values = [value for _, interval, _ in shown for value in interval if math.isfinite(value)]
    lows = [low for _, (_, low, _), _ in shown if math.isfinite(low)]
    log = not zero and bool(lows) and min(lows) > 0 and max(v for _, (v, _, _), _ in shown) > 4 * min(lows)
    name_width = min(150.0, 14 + 7.0 * max((len(name) for name, _, _ in rows), default=1))
    height = TOP + 26 * max(1, len(rows)) + BOTTOM
    frame = Frame(axis(values, log=log, zero=zero), Axis(0, 1), height, name_width, 62)
    frame.grid(x_label, "", y_ticks=False)
    for position, (name, (value, low, high), strong) in enumerate(rows):
        y, style = TOP + 13 + 26 * position, "s0" if strong else "plain"
        _name(frame, name, name_width, y)
        if not math.isfinite(value):
            frame.text(WIDTH - 4, y + 4, "–", "tick end")
            continue
        ends = [frame.px(end) if math.isfinite(end) else frame.px(value) for end in (low, high)]
        if strong and mark:
            frame.line((frame.px(value), TOP), (frame.px(value), height - BOTTOM), "mark s0")
        frame.line((ends[0], y), (ends[1], y), f"span {style}")
        frame.dot(frame.px(value), y, style)
        frame.text(WIDTH - 4, y + 4, _value_text(value, digits), "value end")
    return _or_empty(frame, values).figure(title)


def groups(
    title: str, names: Sequence[str], runs: Mapping[str, Sequence[Interval | None]], x_label: str, y_label: str
) -> Figure:
    """For each name (lines of it are split at a newline) a dot with its interval per run, side by side."""
    ends = [value for run in runs.values() for interval in run if interval for value in interval]
    frame = Frame(Axis(0, max(1, len(names))), axis(ends, zero=True), HEIGHT + 14, bottom=BOTTOM + 14)
    frame.grid(x_label, y_label, x_ticks=False)
    for position, name in enumerate(names):
        for line, text in enumerate(name.split("\n")):
            frame.text(frame.px(position + 0.5), frame.height - frame.bottom + 15 + 13 * line, text, "tick middle")
    for number, run in enumerate(runs.values()):
        for position, interval in enumerate(run):
            if interval is None or not math.isfinite(interval[0]):
                continue
            x = frame.px(position + 0.5 + 0.7 * ((number + 0.5) / len(runs) - 0.5))
            style = f"s{number % SERIES}"
            frame.line((x, frame.py(interval[1])), (x, frame.py(interval[2])), f"span {style}")
            frame.dot(x, frame.py(interval[0]), style)
    legend = [Key(number % SERIES, 0, name) for number, name in enumerate(runs)]
    return _or_empty(frame, ends).figure(title, legend)


def histogram(title: str, values: Mapping[str, tuple[str, Sequence[float]]], x_label: str, y_label: str) -> Figure:
    """``values``: run -> (text of the legend, what was measured); a logarithmic axis where the range is wide."""
    everything = np.concatenate([np.asarray(sample, dtype=float) for _, sample in values.values()])
    everything = everything[np.isfinite(everything)]
    low, high = (float(everything.min()), float(everything.max())) if everything.size else (1.0, 2.0)
    low = max(low, 1e-3)
    wide = high / low > 20  # a scorer beside a generator
    bins = np.geomspace(low, max(high, low) * 1.001, 41) if wide else np.linspace(low * 0.95, max(high, low) * 1.02, 41)
    counts = [np.histogram(sample, bins)[0] for _, sample in values.values()]
    frame = Frame(Axis(float(bins[0]), float(bins[-1]), wide), axis(np.concatenate([*counts, [0, 1]]), zero=True))
    frame.grid(x_label, y_label)
    for number, count in enumerate(counts):
        outline = [(float(bins[0]), 0.0)]
        for position, height in enumerate(count.tolist()):
            outline += [(float(bins[position]), float(height)), (float(bins[position + 1]), float(height))]
        frame.path([*outline, (float(bins[-1]), 0.0)], f"area s{number % SERIES}", closed=True)
    legend = [Key(number % SERIES, 0, text) for number, (text, _) in enumerate(values.values())]
    return frame.figure(title, legend)


def frontier(
    title: str, points: Mapping[str, tuple[float, float, float, float]], x_label: str, y_label: str, reference: str
) -> Figure:
    """Named points with intervals in both directions: (x, half width, y, half width); the reference is at 0, 0."""
    finite = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    xs = [x + sign * half for x, half, _, _ in finite.values() for sign in (-1, 1)]
    ys = [y + sign * half for _, _, y, half in finite.values() for sign in (-1, 1)]
    frame = Frame(axis([*xs, 0.0], margin=0.08), axis([*ys, 0.0], margin=0.08))
    frame.grid(x_label, y_label)
    frame.line((frame.px(0), TOP), (frame.px(0), frame.height - frame.bottom), "axis")
    frame.line((frame.left, frame.py(0)), (WIDTH - frame.right, frame.py(0)), "axis")
    legend = []
    for number, (name, (x, x_half, y, y_half)) in enumerate(finite.items()):
        style = f"s{number % SERIES}"
        frame.line((frame.px(x - x_half), frame.py(y)), (frame.px(x + x_half), frame.py(y)), f"span {style}")
        frame.line((frame.px(x), frame.py(y - y_half)), (frame.px(x), frame.py(y + y_half)), f"span {style}")
        frame.dot(frame.px(x), frame.py(y), style, 6 if name == reference else 4)
        legend.append(Key(number % SERIES, 0, name))
    return _or_empty(frame, list(finite)).figure(title, legend)


def code_usage(title: str, codes: np.ndarray, level_sizes: Sequence[int]) -> Figure:
    """Items behind each code of each level, most used first: a flat line is a well used level."""
    lines: dict[str, Curves] = {}
    for level, size in enumerate(level_sizes):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        share = counts[counts > 0] / max(1, counts.sum())
        perplexity = float(np.exp(-(share * np.log(share)).sum()))
        used = f"{int((counts > 0).sum()):,} of {size:,} used, perplexity {perplexity:,.0f}"
        lines[f"level {level + 1}: {used}"] = {"": (np.linspace(0, 1, size).tolist(), counts.tolist())}
    figure = curves(title, lines, "codes of the level, most used first (share)", "items per code")
    keys = tuple(Key(level % SERIES, 0, text) for level, text in enumerate(lines))  # also for a single level
    return Figure(figure.title, figure.body, figure.height, keys)


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[Point]:
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    step = math.ceil(len(points) / MAX_POINTS) if points else 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _name(frame: Frame, name: str, width: float, y: float) -> None:
    fits = int((width - 10) / 7)
    cut = name if len(name) <= fits + 1 else name[: fits - 1] + "…"
    hover = Markup("<title>{}</title>").format(name) if cut != name else Markup("")
    frame.text(width - 8, y + 4, hover + escape(cut), "name end")


def _value_text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:,.1f}"


def _or_empty(frame: Frame, drawn: Sequence[object]) -> Frame:
    if not drawn:
        frame.text((frame.left + WIDTH) / 2, frame.height / 2 - 20, "nothing to draw", "label middle")
    return frame
