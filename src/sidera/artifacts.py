"""Artifacts: folders of safetensors, Parquet and JSON with a manifest of digests.

A folder is written beside its final place and moved there only when it is complete and on the disk, so a reader sees
the old artifact or the new one, never half of either; a full disk, Ctrl-C or a power cut leaves the old one. Loading
checks kind, version and the digest of every file, the manifest's own among them. Nothing here unpickles.

Trap: taking a place means replacing the folder that is there, so only an artifact may be replaced, and only one that
nobody has put files of their own into.
"""

from __future__ import annotations

import contextlib
import errno
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

from sidera.core import ArtifactError, InputError
from sidera.disk import sync

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 15 * 2**20  # files that move through limits on file size
HEADER_BYTES = 2**16  # of them, kept free for a shard's header


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
    """Yield an empty folder to write into; on leaving without an error it becomes ``path``, with its manifest.

    InputError when something is at ``path`` that is not ours to replace.
    """
    path = Path(os.path.realpath(path))  # behind a link the folder is replaced, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    check_replaceable(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield staging
        inner = sorted(staging.rglob("*"))
        files = {str(file.relative_to(staging)): _sha256(file) for file in inner if file.is_file()}
        record = {**manifest.__dict__, "files": files}
        write_text(staging / MANIFEST, json.dumps({**record, "seal": _seal(record)}, indent=2, sort_keys=True) + "\n")
        staging.chmod(0o755)  # mkdtemp makes private folders; an artifact is to be read
        for place in (*inner, staging):
            sync(place)  # before the renames, which may reach it first
        _swap(staging, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_manifest(path: str | Path, kind: str) -> Manifest:
    """The manifest of the artifact at ``path``; ArtifactError when it is missing, broken, or not a ``kind``."""
    path = Path(path)
    _recover(path)
    anew = f"make the {kind} again"
    try:
        record = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, found_kind = record["format_version"], record["kind"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"no {kind} at {str(path)!r}", fix="check the path, or make it with `sidera run`") from None
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{path / MANIFEST} is damaged", fix=anew) from None
    if version != FORMAT_VERSION:  # first: another version may have other keys
        raise ArtifactError(f"{path} has artifact format {version}", allowed=str(FORMAT_VERSION), fix=anew)
    if found_kind != kind:
        raise ArtifactError(f"{path} holds a {found_kind}, not a {kind}", fix=f"give the path of a {kind}")
    seal = record.pop("seal", None)
    if seal != _seal(record):
        raise ArtifactError(f"{path / MANIFEST} was edited (digest differs)", fix=anew)
    try:
        return Manifest(**record)
    except TypeError:
        raise ArtifactError(f"{path / MANIFEST} is damaged", fix=anew) from None


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
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
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
    room = SHARD_BYTES - HEADER_BYTES
    for name, tensor in tensors.items():
        for part_name, part in _row_parts(name, tensor.detach().cpu()):
            if part.nbytes > room and shards[-1]:
                shards.append({})
                room = SHARD_BYTES - HEADER_BYTES
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


def check_replaceable(path: str | Path) -> None:
    """InputError unless ``path`` is free, empty, or an artifact that holds nothing but its own files."""
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is a file and would be replaced", fix="give the path of a new folder")
    try:
        record = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        own = {*record["files"], MANIFEST}
    except ValueError:
        return  # an artifact whose manifest was cut off
    except (OSError, TypeError, KeyError):
        raise InputError(
            f"{str(path)!r} is no artifact of sidera's and would be replaced",
            allowed="a new or empty folder, or an older artifact",
            fix="give another path, or move the folder away",
        ) from None
    files = (str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file())
    foreign = [name for name in files if name not in own and not Path(name).name.startswith(".")]
    if foreign:
        raise InputError(
            f"{str(path)!r} would be replaced, and {foreign[0]!r} in it is not of its making", fix="move that file away"
        )


def _row_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    limit = SHARD_BYTES - HEADER_BYTES
    if tensor.nbytes <= limit or tensor.ndim == 0:
        yield name, tensor
        return
    rows = max(1, limit * tensor.shape[0] // tensor.nbytes)
    for index, part in enumerate(tensor.split(rows)):
        yield f"{name}#{index}", part


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _swap(staging: Path, path: Path) -> None:
    old = _old(path)
    while True:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        try:
            os.replace(staging, path)
            break
        except OSError as error:  # a reader looked between the two renames and put the old one back
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """A crash between the two renames of ``_swap`` left only the old folder: put it back."""
    old = _old(path)
    if not path.exists() and old.exists():
        os.replace(old, path)


def _seal(record: Mapping[str, Any]) -> str:
    """The digest of a manifest without its seal: identities and recipes are as tell-tale as weights."""
    plain = json.loads(json.dumps(record))  # as it will be read: numbers that are keys become text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
