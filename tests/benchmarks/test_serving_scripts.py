"""How the benchmarks of serving judge: equal lists, bars, shares of a soak."""

from __future__ import annotations

import importlib
import random
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
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


def test_a_fuzz_notices_what_goes_wrong(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that breaks, resets, says nothing or no HTTP is noticed; one that answers is not."""
    fuzz = script("fuzz")
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    whole = fuzz.call(b"/v1/recommend", b"{}", headers=b"Connection: close\r\n")
    for answer, end, kind in (
        (b"HTTP/1.1 422 X\r\n\r\n", "close", None),
        (b"HTTP/1.1 500 X\r\n\r\n", "close", "500: bytes"),
        (b"HTTP/1.1 418 X\r\n\r\n", "shut", "418: bytes"),
        (b"what?", "shut", "no HTTP: bytes"),
        (b"", "close", "no answer: a whole call"),
        (b"", "shut", None),
        (None, "shut", "hang: bytes"),
        (None, "open", None),
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            silent = threading.Event()

            def serve(
                listener: socket.socket = listener, answer: bytes | None = answer, silent: threading.Event = silent
            ) -> None:
                with listener.accept()[0] as sock:
                    sock.recv(1 << 16)
                    if answer is None:
                        silent.wait(10)
                    else:
                        sock.sendall(answer)

            server = threading.Thread(target=serve)
            server.start()
            host, port = listener.getsockname()
            failures = fuzz.Failures()
            fuzz.one_call(SimpleNamespace(host=host, port=port), whole, end, failures)
            silent.set()
            server.join()
        assert list(failures.kinds) == ([kind] if kind else []), (answer, end)


def test_a_fuzz_makes_calls_that_can_be_sent(script: Any) -> None:
    fuzz, draw = script("fuzz"), random.Random(0)
    calls = [fuzz.odd_call(draw, ["cup-1", "cup-2"]) for _ in range(300)]
    assert len(set(calls)) > 200
    assert all(call.startswith(b"POST /v1/") and b"item0000001" not in call for call in calls)
    assert len({fuzz.mutated(draw, one) for one in fuzz.corpus()}) > 200
