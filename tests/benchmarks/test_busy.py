"""The busy claim's own parts: neighbours that really burn and really end, commands whose failure is shown."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import busy

    return busy


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not tell what a child has used")
def test_neighbours_burn_until_the_run_is_over(busy, monkeypatch):
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def watched(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(busy.subprocess, "Popen", watched)
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    before = os.times().children_user
    with contextlib.suppress(RuntimeError), busy.burners([core, core]):
        time.sleep(0.5)
        assert [process.poll() for process in started] == [None, None]
        raise RuntimeError("the run failed")
    assert all(process.poll() is not None for process in started)
    assert os.times().children_user > before


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not tell what a child has used")
def test_a_command_that_fails_is_no_measurement(busy):
    with pytest.raises(SystemExit, match=r"sidera fly failed with 2(.|\n)*invalid choice: 'fly'"):
        busy.sidera("fly")
    spent = busy.sidera("--version")
    assert 0 < spent.cpu < 60
    assert spent.threads == ""
