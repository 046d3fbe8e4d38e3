"""Checkpoints for exact resume: one folder of safetensors shards and JSON, whole or not there.

The folder holds the weights, the optimizer's state, the best weights so far and ``state.json`` (position in the data,
early stopping, clocks, open log window, and the identity of recipe, model and data). There is no pickle.

Writing it whole, and on the disk before it takes the old one's place, is the work of :func:`sidera.artifacts.writing`:
a checkpoint survives the machine, not only the process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidera.artifacts import Manifest, read_manifest, save_tensors, writing
from sidera.config import digest
from sidera.core import ArtifactError
from sidera.loading import open_artifact

KIND = "checkpoint"
FOLDER = "checkpoint"


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Replace the checkpoint at ``path``; ArtifactError, with the old one whole, when it cannot be written."""
    try:
        with writing(path, Manifest(kind=KIND, digest=digest(identity), info={"step": state["step"]})) as folder:
            save_tensors(folder, tensors)
            text = json.dumps({"state": state, "identity": identity}, indent=1)
            (folder / "state.json").write_text(text, encoding="utf-8")
    except OSError as error:
        older = f"the one of step {_step_of(path)} is still whole" if path.exists() else "there is no older one"
        raise ArtifactError(
            f"cannot write checkpoint {path} of step {state['step']}: {error.strerror or error}; {older}",
            fix="free space on the disk and run the same command again",
        ) from error


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the state; ArtifactError when damaged or made by another recipe, model or data."""
    anew = f"remove {path} to train anew"
    try:
        opened = open_artifact(path, KIND)
        record = opened.json("state.json", dict)
        theirs, state = opened.typed(record, "identity", dict), opened.typed(record, "state", dict)
        tensors = opened.tensors()
    except ArtifactError as error:
        raise ArtifactError(error.problem, allowed=error.allowed, fix=anew) from error
    _refuse_other(path, theirs, json.loads(json.dumps(identity)))
    return tensors, state


def tidy(path: Path) -> None:
    """Mend what a killed process left: a swap cut off between its two renames, and half-written folders."""
    old = path.parent / f".{path.name}.old"  # where artifacts.writing keeps it between the renames
    if old.exists() and not path.exists():
        os.replace(old, path)
    for folder in (old, *path.parent.glob(f".{path.name}.new-*")):
        shutil.rmtree(folder, ignore_errors=True)


def describe(model: nn.Module) -> dict[str, Any]:
    """What of a model decides whether its weights fit into another one."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in model.state_dict().items()}
    config = getattr(model, "config", None)
    settings = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    return {"name": type(model).__name__, "weights": digest(shapes), **settings}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's running means and step counts, named ``<parameter number>.<what>``."""
    for number, values in optimizer.state_dict()["state"].items():
        for what, value in values.items():
            yield f"{number}.{what}", torch.as_tensor(value)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` named; the settings of the groups come from the recipe."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, what = name.partition(".")
        state.setdefault(int(number), {})[what] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _step_of(path: Path) -> Any:
    return read_manifest(path, KIND).info.get("step")


def _refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
            leaves.update(inner)
        return leaves

    old, new = flat(theirs), flat(ours)
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if differing:
        named = ", ".join(f"{key} = {old.get(key)!r} there and {new.get(key)!r} here" for key in differing[:4])
        raise ArtifactError(
            f"checkpoint {path} ({digest(theirs)}) belongs to another training than this one ({digest(ours)}): {named}",
            fix=f"use another output folder, or remove {path} to train anew",
        )
