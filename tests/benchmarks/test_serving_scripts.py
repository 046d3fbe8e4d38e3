"""How the benchmarks of serving judge: equal lists, bars, shares of a soak."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(BENCHMARKS):
            del sys.modules[name]


def test_lists_are_the_same_where_equal_scores_change_places(script: Any) -> None:
    serving = script("serving")
    expected = [(f"i{place}", -float(place)) for place in range(11)]
    expected[3], expected[4] = ("i3", -3.0), ("i4", -3.0)
    answer = [item for item, _ in expected[:10]]
    assert serving.same(answer, expected)
    assert serving.same([*answer[:3], "i4", "i3", *answer[5:]], expected)
    assert not serving.same([*answer[:1], "i2", "i1", *answer[3:]], expected)
    assert not serving.same([*answer[:9], "other"], expected)
    assert not serving.same(answer[:9], expected)
    tied = [*expected[:9], ("i9", -9.0), ("i10", -9.0)]
    assert serving.same([*answer[:9], "i10"], tied)
    assert not serving.same([*answer[:9], "i10"], expected)


def test_a_row_passes_where_every_figure_meets_its_bar(script: Any) -> None:
    serving = script("serving")
    good = {
        "right": 1.0,
        "one_client_ms": {"after": {"p50": 4.0, "p99": 8.0}},
        "highest_rate": {"after": 400.0, "before": 50.0},
    }
    value, bar, passed = serving.verdict({"demo_onerec_v2": good})
    assert passed
    assert value["demo_onerec_v2 rate, times"] == 8.0
    assert set(value) == set(bar)
    for change in (
        {"right": 0.98},
        {"one_client_ms": {"after": {"p50": 4.0, "p99": 11.0}}},
        {"highest_rate": {"after": 400.0, "before": 100.0}},
        {"highest_rate": {"after": 299.0}},
    ):
        assert not serving.verdict({"demo_onerec_v2": {**good, **change}})[2]


def test_parts_of_a_soak_are_never_empty(script: Any) -> None:
    soak = script("soak")
    watch = soak.Watch(None, Path("/nothing"))
    assert watch.part(list(range(100)), 0.1, 0.2) == list(range(10, 20))
    assert watch.part([7], 0.9, 1.0) == [7]
    assert watch.part([1, 2], 0.1, 0.2) == [1]
