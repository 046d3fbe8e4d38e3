"""Two processes under torchrun take the steps of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toy import losses, train_toy

from sidera.core import InputError
from sidera.fit import distributed

SCRIPT = Path(__file__).parent / "train_toy.py"


def torchrun(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # a free port
    done = subprocess.run(
        [*command, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow  # 15 s; the same through the shell is tests/test_torchrun.py
def test_two_processes_reproduce_one(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"epochs": 4},
        {"epochs": 4, "accumulate": 3},
        {"epochs": 9, "patience": 2, "lr": 1e-7},
        {"epochs": 3, "source": {"batch_size": 1}},  # the second process has nothing to do
    ]
    torchrun([str(tmp_path / "two"), json.dumps(cases)])
    for number, case in enumerate(cases):
        one = train_toy(tmp_path / "one" / str(number), **case)
        expected, got = losses(tmp_path / "one" / str(number)), losses(tmp_path / "two" / str(number))
        assert [step for step, _ in got] == [step for step, _ in expected]
        assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], abs=1e-5)
        for rank in (0, 1):
            steps, metrics = json.loads((tmp_path / "two" / str(number) / f"rank-{rank}.json").read_text())
            assert steps == one.steps
            assert metrics == pytest.approx(one.best_metrics, abs=1e-5)


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert distributed.setup("cpu") == "cpu"
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather([1.5, 2.0]) == [[1.5, 2.0]]
    assert distributed.share({"a": 1}) == {"a": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"device 'cuda' is not available here; allowed: cpu"):
        distributed.setup("cuda")
