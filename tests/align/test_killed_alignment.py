"""An alignment that is killed (SIGKILL, at a random step) and resumed takes the steps of one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from align_tiny import align_tiny, records

SCRIPT = Path(__file__).parent / "align_tiny.py"
PATHS = [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]  # for hand_made
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, PATHS))}
CASES: dict[str, dict[str, Any]] = {
    "ecpo": {"method": "ecpo"},
    "dpo, accumulated, bf16": {"method": "dpo", "accumulate": 2, "precision": "bf16", "snapshot_every": 100},
}


def killed(run_dir: Path, settings: dict[str, Any], after: int) -> int:
    """The last step in the log of an alignment that was killed as soon as it had taken ``after`` steps."""
    slow = {**settings, "pause": 0.1, "checkpoint_minutes": 0.35 / 60}
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(run_dir), json.dumps(slow)], env=ENVIRONMENT)
    deadline = time.monotonic() + 240
    while last_step(run_dir) < after or not (run_dir / "checkpoint").exists():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, f"it does not come to step {after}"
        time.sleep(0.01)
    process.kill()
    process.wait()
    return last_step(run_dir)


def last_step(run_dir: Path) -> int:
    try:
        return records(run_dir)[-1]["step"]
    except (OSError, IndexError, json.JSONDecodeError):  # not yet, or in the middle of a line
        return 0


@pytest.mark.parametrize("name", CASES)
def test_resumed_after_a_kill(tmp_path: Path, name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = killed(tmp_path / "killed", CASES[name], after=random.randint(4, 9))
        assert step < 12
        resumed, policy, reward = align_tiny(tmp_path / "killed", **CASES[name])
        whole, expected, full_reward = align_tiny(tmp_path / "whole", **CASES[name])
    finally:
        torch.set_num_threads(threads)
    assert records(tmp_path / "killed") == records(tmp_path / "whole"), f"killed at step {step}"
    assert [resumed.start, resumed.checks, resumed.good_step] == [whole.start, whole.checks, whole.good_step]
    for tensor_name, tensor in expected.state_dict().items():
        assert torch.equal(policy.state_dict()[tensor_name], tensor), f"{tensor_name}, killed at step {step}"
    assert reward.flat_for == full_reward.flat_for
    mine, theirs = (found.members["adapting"][1].state() for found in (reward, full_reward))
    assert mine["calls"] == theirs["calls"] == 12 * CASES[name].get("accumulate", 1)
    assert torch.equal(mine["seen"], theirs["seen"])


TOGETHER: dict[str, dict[str, Any]] = {
    "ecpo": {"method": "ecpo", "check_every": 2},
    "free": {"method": "gbpo", "rollout": "free"},
    "dpo": {"method": "dpo", "accumulate": 2},
    "sprec": {"method": "sprec"},
    "logged": {"method": "gbpo_log"},
}


@pytest.mark.slow  # 20 s: five trainings in two processes
def test_two_processes_align_as_one(tmp_path: Path) -> None:
    """On the same requests: the same rollouts, means over all of them, one policy."""
    asked = {name: {"steps": 2, "check_every": 9, **case, "is_plain": True} for name, case in TOGETHER.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=400,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, settings in asked.items():
        ranks = [json.loads((tmp_path / "two" / name / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0] == ranks[1], name
        align_tiny(tmp_path / "one" / name, **settings)
        two, one = (
            [line for line in records(tmp_path / run / name) if line["event"] == "train"] for run in ("two", "one")
        )
        assert len(two) == len(one) == 2
        for mine, theirs in zip(two, one, strict=True):
            assert mine.keys() == theirs.keys()
            for figure in {"loss", "grad_norm", "ntp_loss", "policy_loss", "zero_advantage"} & mine.keys():
                assert mine[figure] == pytest.approx(theirs[figure], rel=1e-3, abs=1e-5), (name, figure)
