"""``torchrun ... -m sidera train``: two processes through the command line make the model that one makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidera.artifacts import verify
from sidera.cli import main
from sidera.data.tiny import tiny_log

RECIPE = """
[catalog]
vectors = ["behaviour"]
vector_dim = 8

[catalog.quantizer]
num_levels = 1
codebook_size = 4
[model]
name = "sidera"
max_history = 8
width = 8
num_layers = 1
num_heads = 1
dropout = 0.0
[fit]
epochs = 3
batch_size = 16
lr = 1e-2
warmup_steps = 2
log_every = 1
"""


def training_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "fit" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


def test_two_processes_train_the_model_of_one(tmp_path: Path) -> None:
    tiny_log(num_users=60, num_items=30).save(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arguments = ["train", str(tmp_path / "recipe.toml"), "--data", str(tmp_path / "data"), "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sidera"]
    two = subprocess.run(
        [*launcher, *arguments, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("train: sidera") == 1  # one process speaks
    expected, found = training_losses(tmp_path / "one"), training_losses(tmp_path / "two")
    assert found == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0]
    models = [verify(tmp_path / name / "model", "model") for name in ("one", "two")]
    assert models[0].digest == models[1].digest
    validations = [model.info["training"]["validation"] for model in models]
    assert validations[1] == pytest.approx(validations[0], abs=0.02)  # 60 rows: two near-ties may fall otherwise
