"""Charts draw where the numbers say, and survive what is not a number."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from sidera.pages import charts
from sidera.pages.axes import Axis, axis, tick_text
from sidera.pages.charts import MAX_POINTS, Figure
from sidera.pages.standalone import write_svg

NAN = float("nan")


def parsed(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(figure.svg)


def circles(figure: Figure) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in parsed(figure).iter("circle")]


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (0.0937, 0.0941, False), (-3, 900, False), (1, 1e12, True), (20, 25, True), (0, 1e-9, False)],
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    found = Axis(low, high, log).ticks()
    assert 2 <= len(found) <= 8
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-9) for tick in found)
    assert len({tick_text(tick) for tick in found}) == len(found)
    shares = [Axis(low, high, log).share(tick) for tick in found]
    assert shares == sorted(shares)


def test_axes_of_one_value_of_none_and_of_nothing_finite() -> None:
    for values in ([], [NAN], [math.inf], [0.0], [5.0], [-2.0, -2.0]):
        for zero in (False, True):
            found = axis(values, zero=zero)
            assert found.low < found.high
            assert math.isfinite(found.share(0.3))
    assert axis([-1, 0, NAN], log=True).low > 0


def test_dots_stand_in_the_order_of_their_values_and_reach_their_ends() -> None:
    rows = [("a", (0.2, 0.1, 0.3), True), ("b", (0.4, 0.35, 0.45), False), ("c", (NAN, NAN, NAN), False)]
    figure = charts.dots("Recall", "share", rows)
    (xa, ya), (xb, yb) = circles(figure)
    assert xa < xb
    assert ya < yb
    spans = [line for line in parsed(figure).iter("line") if "span" in line.attrib["class"]]
    assert float(spans[0].attrib["x1"]) < xa < float(spans[0].attrib["x2"])
    assert figure.svg.count("–") == 1


def test_an_oracle_beside_the_rest_makes_the_axis_logarithmic() -> None:
    rows = [("a", (1.0, 0.9, 1.1), False), ("b", (2.0, 1.9, 2.1), False), ("oracle", (100.0, 99.0, 101.0), False)]
    (a, _), (b, _), (c, _) = circles(charts.dots("x", "y", rows))
    assert (b - a) > 0.1 * (c - a)


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    x = list(range(100_000))
    figure = charts.curves("loss", {"run": {"": (x, [1 / (1 + step) for step in x])}}, "step", "loss")
    (path,) = re.findall(r' d="M(.*?)"', figure.svg)
    points = path.split(" L")
    assert len(points) <= MAX_POINTS + 1
    assert float(points[-1].split()[0]) > charts.WIDTH - charts.RIGHT - 12
    assert len(figure.svg) < 10_000


def test_what_is_not_a_number_is_left_out() -> None:
    lines = {"run": {"": ([1, 2, 3, 4], [1.0, NAN, math.inf, 2.0])}}
    assert "nan" not in charts.curves("t", lines, "x", "y").svg
    assert "nothing to draw" in charts.curves("t", {"run": {"": ([1], [NAN])}}, "x", "y").svg
    assert "nothing to draw" in charts.curves("t", {}, "x", "y").svg
    assert "nan" not in charts.frontier("t", {"a": (0, 0, 0, 0), "b": (NAN, 1, 2, NAN)}, "x", "y", "a").svg
    parsed(charts.histogram("t", {"a": ("a", [NAN, 0.0])}, "x", "y"))
    parsed(charts.groups("t", ["one"], {"a": [None], "b": [(NAN, NAN, NAN)]}, "x", "y"))


def test_a_hundred_thousand_codes_make_a_small_picture() -> None:
    codes = np.stack([np.arange(100_000), np.arange(100_000) % 7], axis=1)
    figure = charts.code_usage("codes", codes, (100_000, 10))
    assert len(figure.svg) < 40_000
    assert "7 of 10 used" in figure.legend[1].text


def test_names_are_text_and_long_ones_are_cut() -> None:
    name = '<script>"&' * 20
    figure = charts.dots(name, name, [(name, (1.0, 0.5, 1.5), True)])
    assert "<script" not in figure.svg
    assert parsed(figure).attrib["aria-label"] == name
    titles = [one.text for one in parsed(figure).iter("title")]
    assert titles == [name]  # the whole name is there for who points at it


def test_standalone_pictures_carry_their_colours(tmp_path) -> None:  # type: ignore[no-untyped-def]
    figures = [charts.curves(t, {"a & b": {"": ([1, 2], [1, 2])}, "c": {"": ([1, 2], [2, 1])}}, "x", "y") for t in "ab"]
    text = write_svg(figures, tmp_path / "two.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert text.count("a &amp; b") == 2
