"""What benchmarks/before_after.py makes of its pairs: an interval of the median, and whether two trees agree."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "before_after.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("before_after", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_interval_of_a_median_comes_from_order_statistics(script):
    # of 15 values ranks 4 and 12 cover the median with 1 - 2 P(Binomial(15, 1/2) < 4) = 0.965
    assert script.interval_of_median([float(value) for value in range(15, 0, -1)]) == (4.0, 12.0)
    assert 1 - 2 * sum(math.comb(15, k) for k in range(4)) / 2**15 == pytest.approx(0.9648, abs=1e-4)
    assert script.interval_of_median([3.0, 1.0, 2.0]) == (1.0, 3.0)  # three values cover it with 0.75 at most


@pytest.mark.parametrize(
    ("before", "after", "differ"),
    [
        (1.0, 1.00001, False),
        (1.0, 1.01, True),
        ([1.0, 2.0], [1.0], True),
        ({"items": ["a"]}, {"items": ["b"]}, True),
        ({"items": ["a"], "time": 3}, {"items": ["a"], "time": 3}, False),
        (None, 1.0, True),
    ],
)
def test_trees_that_compute_something_else_are_told_apart(script, before, after, differ):
    assert script.differs(before, after) is differ


def test_a_measurement_fails_where_the_trees_disagree(script):
    def worker(answer):
        return SimpleNamespace(ask=lambda command: answer if command.startswith("prepare") else {"seconds": 0.1})

    alike, other = worker({"computed": [1.0]}), worker({"computed": [2.0]})
    assert "something else" in script.measure("world", {"before": alike, "after": other}, 3, True)["error"]
    assert script.measure("world", {"before": alike, "after": alike}, 3, True)["ratio"] == 1.0
    broken = worker({"error": "ValueError: no"})
    assert script.measure("world", {"before": alike, "after": broken}, 3, True)["error"] == "after: ValueError: no"


def test_interception_finds_what_would_be_timed(script):
    module = SimpleNamespace(__name__="some_script", timed=lambda *_: None)
    before = module.timed
    assert script.intercept(module, "timed", lambda: module.timed("model", "source")) == ("model", "source")
    assert module.timed is before
    with pytest.raises(RuntimeError, match="did not call timed"):
        script.intercept(module, "timed", lambda: None)
