"""Loudness, the JSON line, tables, and progress with and without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sidera import console
from sidera.console import Progress, duration, table
from sidera.core import InputError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    console.configure()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("level", "as_json", "out", "err"),
    [
        (console.QUIET, False, ["result"], ["warning"]),
        (console.NORMAL, False, ["note", "result"], ["warning"]),
        (console.VERBOSE, False, ["note", "detail", "result"], ["warning"]),
        (console.QUIET, True, ['{"verb": "x", "a": 1}'], ["warning"]),
        (console.NORMAL, True, ['{"verb": "x", "a": 1}'], ["note", "result", "warning"]),
        (console.VERBOSE, True, ['{"verb": "x", "a": 1}'], ["note", "detail", "result", "warning"]),
    ],
)
def test_what_is_heard_at_each_level(
    level: int, as_json: bool, out: list[str], err: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure(level, as_json)
    console.say("note")
    console.detail("detail")
    console.result("result")
    console.warn("warning")
    console.finish("x", {"a": 1})
    found = capsys.readouterr()
    assert found.out.splitlines() == out
    assert found.err.splitlines() == err


def test_json_holds_what_json_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(console.QUIET, as_json=True)
    console.finish(
        "x", {"nan": float("nan"), "array": np.arange(3), "one": np.float32(0.5), "deep": {1: [float("inf")]}}
    )
    line = capsys.readouterr().out
    assert json.loads(line) == {"verb": "x", "nan": None, "array": [0, 1, 2], "one": 0.5, "deep": {"1": [None]}}


def test_tables_are_aligned() -> None:
    lines = table(("name", "rows", "value"), [("long name", 12345, 0.5), ("b", None, 12.0)]).splitlines()
    assert lines == [
        "name         rows    value",
        "---------  ------  -------",
        "long name  12,345   0.5000",
        "b                  12.0000",
    ]
    with pytest.raises(ValueError, match="a cell for each column"):
        table(("a", "b"), [("one",)])


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5400, "1 h 30 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_every_thirty_seconds_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("train", 100, clock=clock) as progress:
        for step in range(1, 71):
            clock.now = float(step)
            progress.show(loss=3.0 / step)
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "train: 30 of 100 steps (30 %), loss 0.1, 1 steps/s, at most 70 s left"
    assert lines[1].startswith("train: 60 of 100 steps (60 %), loss 0.05")


def test_a_resumed_stage_counts_its_own_speed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("train", 200, done=100, clock=clock)
    clock.now = 50.0
    progress.to(150)
    assert capsys.readouterr().err == "train: 150 of 200 steps (75 %), 1 steps/s, at most 50 s left\n"


def test_quiet_progress_says_nothing_and_verbose_says_each(capsys: pytest.CaptureFixture[str]) -> None:
    for level, expected in ((console.QUIET, 0), (console.VERBOSE, 3)):
        console.configure(level)
        clock = Clock()
        with Progress("train", 3, clock=clock) as progress:
            for _ in range(3):
                clock.now += 1.0
                progress.advance()
                progress.show(loss=1.0)
        assert len(capsys.readouterr().err.splitlines()) == expected


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("evaluate", unit="row") as progress:
        progress.to(3, 4)
        progress.to(4, 4)
    assert "evaluate" in capsys.readouterr().err


def test_a_stage_that_cannot_count_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with console.working("clustering", every=0.05):
        end = time.monotonic() + 20
        heard = ""
        while "clustering" not in heard and time.monotonic() < end:
            time.sleep(0.02)
            heard += capsys.readouterr().err
    assert heard.startswith("clustering: at it for 1 s")
    console.configure(console.QUIET)
    with console.working("clustering", every=0.001):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_message_is_one_line_of_bounded_length_whatever_it_repeats() -> None:
    assert len(str(InputError("\ud800" * 10**6))) < 700
    said = str(InputError(f"codebook {'a' * 10**5}\n\ud800 is not that of the catalogue", fix="train it again"))
    assert len(said) < 700
    assert said.isprintable()
    assert said.startswith("codebook aaa")
    assert said.endswith("is not that of the catalogue; fix: train it again")
