"""Checkpoints for exact resume: one folder of safetensors shards and JSON, whole or not there.

The folder holds the weights, the optimizer's state, the best weights so far and ``state.json`` (position in the data,
early stopping, clocks, open log window, and the identity of recipe, model and data). There is no pickle. A tensor is
cut along its flattened length, so that no file passes ``SHARD_BYTES`` however large a table is; ``index.json`` says
which pieces make it up.

Writing it whole, and on the disk before it takes the old one's place, is the work of :func:`sidera.artifacts.writing`:
a checkpoint survives the machine, not only the process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sidera.artifacts import Manifest, read_manifest, writing
from sidera.config import digest
from sidera.core import ArtifactError
from sidera.loading import Opened, open_artifact

KIND = "checkpoint"
FOLDER = "checkpoint"
SHARD_BYTES = 15 * 2**20  # largest file, header included
_PIECE_BYTES = 512  # what one piece takes of a shard's header, at most
_DATA_BYTES = SHARD_BYTES - 2**16  # data and pieces' shares of the header


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Replace the checkpoint at ``path``; ArtifactError, with the old one whole, when it cannot be written."""
    try:
        with writing(path, Manifest(kind=KIND, digest=digest(identity), info={"step": state["step"]})) as folder:
            write_shards(folder, tensors)
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
        tensors = read_shards(opened)
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


def write_shards(folder: Path, tensors: Mapping[str, Tensor], data_bytes: int = _DATA_BYTES) -> None:
    """Write tensors of any dtype and size as ``part-00000.safetensors``... and ``index.json``."""
    index: dict[str, dict[str, Any]] = {}
    shard: dict[str, Tensor] = {}
    used = number = 0
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().view(-1)
        parts: list[int] = []
        start = 0
        while start < flat.numel() or not parts:
            fits = (data_bytes - used - _PIECE_BYTES) // flat.element_size()
            if fits < 1:
                save_file(shard, folder / f"part-{number:05d}.safetensors")
                shard, used, number = {}, 0, number + 1
                continue
            piece = flat[start : start + fits]
            shard[f"{name}#{len(parts)}"] = piece.clone()  # a slice would carry its whole storage along
            parts.append(number)
            used += piece.numel() * piece.element_size() + _PIECE_BYTES
            start += fits
        index[name] = {"shape": list(tensor.shape), "parts": parts}
    if shard:
        save_file(shard, folder / f"part-{number:05d}.safetensors")
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def read_shards(opened: Opened) -> dict[str, Tensor]:
    """The inverse of :func:`write_shards`, from the artifact that it was written into."""
    index = opened.json("index.json", dict)
    pieces: dict[str, Tensor] = {}
    for name in opened.manifest.files:
        if re.fullmatch(r"part-\d{5,}\.safetensors", name):
            pieces |= opened.tensor_file(name)
    found = {}
    with opened.believed():
        for name, entry in index.items():
            parts = range(len(opened.typed(entry, "parts", list)))
            found[name] = torch.cat([pieces.pop(f"{name}#{part}") for part in parts]).view(entry["shape"])
    return found


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
