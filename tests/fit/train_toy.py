"""Trains the toy model in a process of its own: ``python train_toy.py RUN_DIR SETTINGS_JSON``; torchrun works too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from toy_training import RingSource, Toy, accuracy

from sidera.fit import FitConfig, FitResult, distributed, fit, seed_everything


def train_toy(run_dir: Path, *, dropout: float = 0.0, source: Any = None, **keys: Any) -> FitResult:
    settings = {"epochs": 6, "lr": 0.03, "warmup_steps": 5, "monitor": "accuracy", "log_every": 1, **keys}
    settings.setdefault("precision", "f32")  # sums are compared to 1e-5 with those of other processes
    seed_everything(5)
    return fit(Toy(dropout), RingSource(**(source or {})), FitConfig(**settings), run_dir, evaluate=accuracy)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["event"] == "train"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.setup("cpu")
    for number, settings in enumerate(json.loads(sys.argv[2])):
        run_dir = Path(sys.argv[1]) / str(number)
        result = train_toy(run_dir, **settings)
        (run_dir / f"rank-{distributed.rank()}.json").write_text(json.dumps([result.steps, result.best_metrics]))
    distributed.cleanup()
