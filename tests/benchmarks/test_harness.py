"""The plumbing of the benchmark scripts: what a claim's last line holds, which runs overwrite a committed result."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "harness.py"


@pytest.fixture
def harness(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("harness_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/claim.py", "--quick"])
    return module


def test_last_line_is_the_claim_and_quick_runs_leave_the_result(harness, tmp_path, capsys):
    harness.finish("claim", 1.5, 2.0, True, {"seed": 3}, quick=True)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [record[key] for key in ("name", "value", "bar", "pass")] == ["claim", 1.5, 2.0, True]
    assert record["context"]["seed"] == 3
    assert record["context"]["command"] == "python benchmarks/claim.py --quick"
    assert {"cpu", "cores", "python", "torch", "numpy"} <= set(record["context"]["machine"])
    assert not list(tmp_path.iterdir())

    harness.finish("claim", 1.5, 2.0, True, {"seed": 3}, quick=False, details={"rounds": [1, 2]})
    whole = json.loads((tmp_path / "claim.json").read_text())
    assert whole["details"] == {"rounds": [1, 2]}
    assert set(whole["provenance"]) == {"commit", "uncommitted_changes", "code"}


def test_without_a_bar_nothing_is_passed(harness, capsys):
    for bar, passed, said in ((None, True, None), (None, False, None), (2.0, None, None), (2.0, False, False)):
        harness.finish("claim", 1.5, bar, passed, {}, quick=True)
        assert json.loads(capsys.readouterr().out)["pass"] is said


def test_what_json_cannot_hold_is_null(harness, tmp_path, capsys):
    value = {"share": [float("nan"), 0.5], "worst": (float("inf"), 2)}
    harness.finish("claim", value, None, False, {}, quick=False, details={"deep": [{"x": float("-inf")}]})
    expected = {"share": [None, 0.5], "worst": [None, 2]}
    assert json.loads(capsys.readouterr().out)["value"] == expected
    whole = json.loads((tmp_path / "claim.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (whole["value"], whole["details"]) == (expected, {"deep": [{"x": None}]})


def test_rounds_interleave_and_the_first_is_not_counted(harness):
    calls = []
    seconds = harness.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_allocator_settings_are_there_after_one_restart(tmp_path):
    script = tmp_path / "claim.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import os, harness\n"
        "print('start', flush=True)\n"
        "harness.tuned_allocator()\n"
        "print(sys.argv[1:], all(os.environ[name] == value for name, value in harness.ALLOCATOR.items()))\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, str(script), "--quick"], env=bare, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["start", "start", "['--quick'] True"]
