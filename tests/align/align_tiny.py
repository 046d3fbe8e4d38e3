"""Aligns the tiny world's policy in its own process: ``python align_tiny.py RUN_DIR SETTINGS_JSON``; torchrun too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_world import FUSED, TableReward, tiny
from torch import Tensor, nn

from sidera.align.config import AlignConfig
from sidera.align.gates import Gates
from sidera.align.methods import METHODS
from sidera.align.rewards import RewardBatch, Rewards, Together
from sidera.align.sources import exposures, next_tokens
from sidera.align.training import AlignResult, align
from sidera.fit import distributed
from sidera.nn import event_features


class Adapting:
    """A reward that changes with what it was asked: items that it has seen often are worth less, and it tires."""

    def __init__(self, table: Tensor, pause: float = 0.0) -> None:
        self.table, self.pause = table, pause
        self.seen = torch.zeros(len(table))  # exponential mean of how often each item was asked about
        self.calls = 0

    def __call__(self, asked: RewardBatch) -> Rewards:
        time.sleep(self.pause)
        self.calls += 1
        counts = torch.bincount(asked.item_ids.clamp(min=0).flatten(), minlength=len(self.table)).float()
        self.seen = 0.9 * self.seen + 0.1 * counts
        worth = self.table / (1 + self.seen) - 0.01 * self.calls
        return Rewards(worth[asked.item_ids.clamp(min=0)], {})

    def state(self) -> Mapping[str, Any]:
        return {"seen": self.seen, "calls": self.calls}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen, self.calls = state["seen"], state["calls"]


class Sometimes:
    """A reward that says the same of all items now and then: `Together` counts how often in a row."""

    def __call__(self, asked: RewardBatch) -> Rewards:
        flat = int(asked.item_ids.sum()) % 2 == 0
        return Rewards(torch.zeros(asked.item_ids.shape) if flat else (asked.item_ids % 7).float(), {})


def align_tiny(
    run_dir: Path, pause: float = 0.0, *, is_plain: bool = False, **settings: Any
) -> tuple[AlignResult, nn.Module, Any]:
    """(result, policy, reward); ``is_plain``: a reward that keeps nothing, no ages hidden at random."""
    world = tiny(ntp_steps=20)
    policy, engine = world.policy()
    config = AlignConfig(**{"steps": 12, "group": 8, "requests": 8, "check_every": 5, "snapshot_every": 3, **settings})
    adapting = Adapting(TableReward.of(world.view, FUSED).table, pause)
    members: dict[str, Any] = {"adapting": (1.0, adapting), "sometimes": (0.1, Sometimes())}
    if is_plain:
        members = {"table": (1.0, TableReward.of(world.view, FUSED))}
    reward = Together(members, patience=100)
    read = policy, world.view, world.catalog.items
    source = exposures if METHODS[config.method].needs_log else next_tokens
    with patch.object(event_features, "TIMELESS", 0.0 if is_plain else event_features.TIMELESS):
        result = align(
            policy, engine, config, ntp=next_tokens(*read, 64, targets=METHODS[config.method].targets),
            requests=source(*read, config.requests, seed=1), reward=reward, probe=world.probe(32),
            gates=Gates.open(), run_dir=run_dir,
        )  # fmt: skip
    return result, policy, reward


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.setup("cpu")
    asked = json.loads(sys.argv[2])
    for name, settings in asked.items() if "method" not in asked else [("", asked)]:
        result, policy, _ = align_tiny(Path(sys.argv[1]) / name, **settings)
        sums = [float(tensor.double().sum()) for tensor in policy.state_dict().values()]
        place = Path(sys.argv[1]) / name / f"rank-{distributed.rank()}.json"
        place.write_text(json.dumps([result.steps, result.good_step, sums]))
    distributed.cleanup()
