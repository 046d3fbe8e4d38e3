"""A training that is killed (SIGKILL, in mid-epoch) and resumed takes the steps of one that was not, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toy import losses, train_toy

SCRIPT = Path(__file__).parent / "train_toy.py"
CASES: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3},
    # the accuracy does not change at such a rate, so the count of worse evaluations decides the end
    "accumulation and early stopping": {"dropout": 0.3, "accumulate": 3, "patience": 5, "lr": 1e-7, "epochs": 12},
    # patience runs out at step 14, and the best weights, of step 7, are trained on at a falling rate
    "cool-down": {"dropout": 0.3, "patience": 1, "lr": 1e-7, "epochs": 12, "cooldown": 1.0},
}


HANG_AT = (2, 6)  # epoch and batch: in mid-epoch, after steps that no checkpoint has seen


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of trainings that were killed between two checkpoints, all at the same time."""
    folder = tmp_path_factory.mktemp("killed")
    running = {}
    for name, case in CASES.items():
        settings = {**case, "source": {"hang_at": HANG_AT, "pause": 0.01}, "checkpoint_minutes": 0.04 / 60}
        command = [sys.executable, str(SCRIPT), str(folder / name), json.dumps([settings])]
        running[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for name, process in running.items():
        deadline = time.monotonic() + 240
        while _last_step(folder / name / "0") < _hang_step(name):
            assert process.poll() is None, f"{name} ended by itself"
            assert time.monotonic() < deadline, f"{name} does not come to its step"
            time.sleep(0.02)
        process.kill()
        process.wait()
    return folder


def _hang_step(name: str) -> int:
    per_step = CASES[name].get("accumulate", 1)
    return HANG_AT[0] * -(-7 // per_step) + HANG_AT[1] // per_step


def _last_step(run_dir: Path) -> int:
    try:
        return losses(run_dir)[-1][0]
    except (OSError, IndexError):  # not yet
        return 0


@pytest.mark.parametrize("name", CASES)
def test_resumed_after_a_kill(killed: Path, tmp_path: Path, name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train_toy(tmp_path, **CASES[name])
        assert losses(killed / name / "0")[-1][0] == _hang_step(name) < whole.steps
        assert (killed / name / "0" / "checkpoint").exists()
        resumed = train_toy(killed / name / "0", **CASES[name], checkpoint_minutes=1.0)
    finally:
        torch.set_num_threads(threads)
    assert losses(killed / name / "0") == losses(tmp_path)
    assert (resumed.steps, resumed.best_step, resumed.best_metrics, resumed.stopped_because) == (
        whole.steps,
        whole.best_step,
        whole.best_metrics,
        whole.stopped_because,
    )
    assert whole.stopped_because == ("epochs" if name == "dropout" else "patience")
