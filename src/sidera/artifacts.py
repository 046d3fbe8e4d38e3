"""Artifacts: folders of safetensors, Parquet and JSON with a manifest of digests.

A folder is written beside its final place and moved there only when it is complete, so a reader sees the old artifact
or the new one, never half of either; a full disk or Ctrl-C leaves the old one. Loading checks kind, version and the
digest of every file. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.core import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 15 * 2**20  # files that move through limits on file size


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself."""

    kind: str  # "dataset", "catalog", "model", "evaluation", ...
    digest: str  # names the inputs that made it; equal digests mean the stage can be reused
    parents: dict[str, str] = field(default_factory=dict)  # kind -> digest
    recipe: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # kind-specific: identities, versions, counts
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    format_version: int = FORMAT_VERSION


@contextlib.contextmanager
def writing(path: str | Path, manifest: Manifest) -> Iterator[Path]:
    """Yield an empty folder to write into; on leaving without an error it becomes ``path``, with its manifest."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield staging
        files = {str(file.relative_to(staging)): _sha256(file) for file in sorted(staging.rglob("*")) if file.is_file()}
        record = {**manifest.__dict__, "files": files}
        write_text(staging / MANIFEST, json.dumps(record, indent=2, sort_keys=True) + "\n")
        staging.chmod(0o755)  # mkdtemp makes private folders; an artifact is to be read
        _swap(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_manifest(path: str | Path, kind: str) -> Manifest:
    """The manifest of the artifact at ``path``; ArtifactError when it is missing, broken, or not a ``kind``."""
    path = Path(path)
    _recover(path)
    try:
        record = json.loads((path / MANIFEST).read_text())
        manifest = Manifest(**record)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"no {kind} at {str(path)!r}", fix="check the path, or make it with `sidera run`") from None
    except (ValueError, TypeError):
        raise ArtifactError(f"{path / MANIFEST} is damaged", fix=f"make the {kind} again") from None
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has artifact format {manifest.format_version}",
            allowed=str(FORMAT_VERSION),
            fix=f"make the {kind} again",
        )
    if manifest.kind != kind:
        raise ArtifactError(f"{path} holds a {manifest.kind}, not a {kind}", fix=f"give the path of a {kind}")
    return manifest


def verify(path: str | Path, kind: str) -> Manifest:
    """Like :func:`read_manifest`, and every file is there with the digest that the manifest names."""
    path = Path(path)
    manifest = read_manifest(path, kind)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{kind} {path} lacks its file {name}", fix=f"make the {kind} again")
        if _sha256(file) != expected:
            raise ArtifactError(f"{file} is truncated or was edited (digest differs)", fix=f"make the {kind} again")
    return manifest


def write_text(path: str | Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def is_current(path: str | Path, kind: str, digest: str) -> bool:
    """True when a whole artifact of that kind and digest is there, so that its stage need not run again."""
    try:
        return verify(path, kind).digest == digest
    except ArtifactError:
        return False


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], prefix: str = "weights") -> None:
    """Write tensors as ``prefix-00000.safetensors`` ... of at most SHARD_BYTES each; long tensors are cut by rows."""
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        for part_name, part in _row_parts(name, tensor.detach().cpu()):
            if part.nbytes > room and shards[-1]:
                shards.append({})
                room = SHARD_BYTES
            shards[-1][part_name] = part.contiguous().clone()
            room -= part.nbytes
    for index, shard in enumerate(shards):
        save_file(shard, str(folder / f"{prefix}-{index:05d}.safetensors"))


def load_tensors(folder: Path, prefix: str = "weights") -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote."""
    parts: dict[str, dict[int, Tensor]] = {}
    for file in sorted(folder.glob(f"{prefix}-*.safetensors")):
        try:
            shard = load_file(str(file))
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{file} is damaged: {error}", fix="make the artifact again") from None
        for part_name, part in shard.items():
            name, _, index = part_name.partition("#")
            parts.setdefault(name, {})[int(index or 0)] = part
    if not parts:
        raise ArtifactError(f"{folder} holds no {prefix} files", fix="make the artifact again")
    return {
        name: found[0] if len(found) == 1 else torch.cat([found[index] for index in sorted(found)])
        for name, found in parts.items()
    }


def _row_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if tensor.nbytes <= SHARD_BYTES or tensor.ndim == 0:
        yield name, tensor
        return
    rows = max(1, SHARD_BYTES * tensor.shape[0] // tensor.nbytes)
    for index, part in enumerate(tensor.split(rows)):
        yield f"{name}#{index}", part


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _swap(staging: Path, path: Path) -> None:
    old = _old(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(staging, path)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """A crash between the two renames of ``_swap`` left only the old folder: put it back."""
    old = _old(path)
    if not path.exists() and old.exists():
        os.replace(old, path)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
