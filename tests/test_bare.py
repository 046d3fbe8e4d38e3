"""A bare machine: torch, numpy, pyarrow and safetensors alone, one small folder, short pieces, small files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from sidera.catalog.vectors_file import save_vectors
from sidera.data.tiny import tiny_log

# Run before anything else: whatever is imported must belong to Python or to one of the four.
GUARD = """
import importlib.abc, sys

ALLOWED = {"sidera", "torch", "torchgen", "numpy", "pyarrow", "safetensors"} | set(sys.stdlib_module_names)
# what torch itself needs to be imported at all
ALLOWED |= {"typing_extensions", "sympy", "mpmath", "filelock", "jinja2", "markupsafe", "networkx", "fsspec"}


class Guard(importlib.abc.MetaPathFinder):
    # the only finder: to it other packages are not installed

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)


sys.meta_path[:] = [Guard(list(sys.meta_path))]
for name in [name for name in sys.modules if name.partition(".")[0] not in ALLOWED | {"__main__"}]:
    if not name.startswith("_"):
        del sys.modules[name]
from sidera.cli import main

sys.exit(main(sys.argv[1:]))
"""
RECIPE = """
[catalog]
vectors = ["file"]
vectors_file = "{folder}/vectors.safetensors"

[catalog.quantizer]
num_levels = 2
codebook_size = 8
[model]
name = "sidera"
max_history = 8
width = 8
num_layers = 1
num_heads = 1
[fit]
epochs = 3
batch_size = 16
warmup_steps = 2
[eval]
valid_rows = 20
"""


def bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GUARD, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def make_folder(folder: Path) -> None:
    dataset = tiny_log(num_users=40, num_items=30)
    dataset.save(folder / "data")
    vectors = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    save_vectors(folder / "vectors.safetensors", dataset.item_keys, vectors, half=True)
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))


def test_the_guard_guards(tmp_path: Path) -> None:
    """Or this file tests nothing."""
    found = subprocess.run(
        [sys.executable, "-c", GUARD.replace("from sidera.cli import main", "import sklearn")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'sklearn'" in found.stderr


def test_training_in_pieces_on_a_bare_machine(tmp_path: Path) -> None:
    make_folder(tmp_path)
    command = ("train", "recipe.toml", "--data", "data", "--out", "run", "--piece-minutes", "0.0005")
    first = bare(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    assert "training is unfinished: give the same command again to go on" in first.stdout
    assert sum(file.stat().st_size for file in (tmp_path / "run" / "fit" / "checkpoint").iterdir()) > 0
    assert not (tmp_path / "run" / "model").exists()
    last = bare(tmp_path, *command[:-2])
    assert last.returncode == 0, last.stderr
    assert "catalog: reused" in last.stdout
    assert json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())["info"]["num_items"] == 30
    answer = bare(tmp_path, "recommend", "run", "--history", "item0001,item0003", "-k", "3")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 3


def test_every_model_and_the_evaluation_import_bare(tmp_path: Path) -> None:
    """One process: all that training and measuring import, without a training for each."""
    code = GUARD.replace(
        "from sidera.cli import main",
        "import sidera.train.stages, sidera.models, sidera.eval.evaluate, sidera.engine.recommender",
    ).replace("sys.exit(main(sys.argv[1:]))", "")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_no_file_outgrows_the_limit(tmp_path: Path) -> None:
    """Weights and checkpoint of a model of 60 MB, under the limits that files pass through."""
    from sidera.artifacts import SHARD_BYTES, Manifest, save_tensors, writing
    from sidera.fit.checkpoint import load_checkpoint, save_checkpoint
    from sidera.loading import open_artifact

    tensors = {"item.weight": torch.randn(60_000, 128), "output.weight": torch.randn(60_000, 128)}
    tensors |= {f"layer.{index}": torch.randn(64, 64) for index in range(30)}
    with writing(tmp_path / "model", Manifest("model", "d")) as folder:
        save_tensors(folder, tensors)
    save_checkpoint(tmp_path / "checkpoint", tensors, {"step": 1}, {"model": "large"})
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) > 120e6
    assert max(file.stat().st_size for file in files) <= 15 * 2**20 == SHARD_BYTES
    weights = open_artifact(tmp_path / "model", "model").tensors()
    for found in (weights, load_checkpoint(tmp_path / "checkpoint", {"model": "large"})[0]):
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
