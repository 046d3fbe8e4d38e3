"""Artifacts: folders of safetensors, Parquet and JSON with a manifest of digests.

A folder is written beside its final place and moved there only when it is complete and on the disk, so a reader sees
the old artifact or the new one, never half of either; a full disk, Ctrl-C or a power cut leaves the old one. Here the
manifest is checked: kind, version, seal, the type of every field, and that the files it lists are plain files of this
folder. :mod:`sidera.loading` reads what it lists. Nothing here unpickles.

Trap: taking a place means replacing the folder that is there, so only an artifact may be replaced, and only one that
nobody has put files of their own into.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidera.bounds import parse_json, read_json, read_regular, shown
from sidera.core import ArtifactError, InputError
from sidera.disk import sync

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 15 * 2**20  # files that move through limits on file size
HEADER_BYTES = 2**16  # of them, kept free for a shard's header
MAX_MANIFEST_BYTES = 64 * 2**20  # a snapshot's names its users
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[. ]", re.IGNORECASE)  # names that Windows cannot have
SHA256 = re.compile("[0-9a-f]{64}")
FIELDS: dict[str, type] = {
    "kind": str, "digest": str, "parents": dict, "recipe": dict, "info": dict, "files": dict, "format_version": int,
}  # fmt: skip
ALIGNED = 64  # bytes that tensors in a file are aligned to, as those in torch's own memory are
TENSOR_KINDS = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


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
def writing(path: str | Path, manifest: Manifest | Callable[[], Manifest]) -> Iterator[Path]:
    """Yield an empty folder to write into; on leaving without an error it becomes ``path``, with its manifest.

    A function is asked for the manifest once everything else is written.
    InputError when something is at ``path`` that is not ours to replace.
    """
    path = Path(os.path.realpath(path))  # behind a link the folder is replaced, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    check_replaceable(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield staging
        made = manifest() if callable(manifest) else manifest
        inner = sorted(staging.rglob("*"))
        files = {file.relative_to(staging).as_posix(): _sha256(file) for file in inner if file.is_file()}
        record = {**made.__dict__, "files": files}
        text = json.dumps({**record, "seal": _seal(record)}, indent=2, sort_keys=True) + "\n"
        if len(text) > MAX_MANIFEST_BYTES:  # rather than an artifact that nobody can open
            raise InputError(f"the manifest of {path} takes {len(text):,} bytes", allowed=f"{MAX_MANIFEST_BYTES:,}")
        write_text(staging / MANIFEST, text)
        for place in (*inner, staging):
            place.chmod(0o755 if place.is_dir() else 0o644)  # mkdtemp makes a private folder; all may read
            sync(place)  # before the renames, which may reach it first
        _swap(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_manifest(path: str | Path, kind: str) -> Manifest:
    """The manifest of the artifact at ``path``; ArtifactError when it is missing, broken, or not a ``kind``.

    Every field has its type, and every file its plain name and a digest, when this returns.
    """
    path = Path(path)
    _recover(path)
    anew = f"make the {kind} again"
    try:
        record = parse_json(read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
        version, found_kind = record["format_version"], record["kind"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"no {kind} at {str(path)!r}", fix="check the path, or make it with `sidera run`") from None
    except OSError as error:
        problem = f"{path / MANIFEST} cannot be read: {error.strerror}"
        raise ArtifactError(problem, fix="check the permissions") from None
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{path / MANIFEST} is damaged", fix=anew) from None
    if version != FORMAT_VERSION or isinstance(version, bool):  # first: another version may have other keys
        raise ArtifactError(f"{path} has artifact format {shown(version)}", allowed=str(FORMAT_VERSION), fix=anew)
    if found_kind != kind:
        found = shown(found_kind).strip("'")
        raise ArtifactError(f"{path} holds a {found}, not a {kind}", fix=f"give the path of a {kind}")
    seal = record.pop("seal", None)
    if seal != _seal(record):
        raise ArtifactError(f"{path / MANIFEST} was edited (digest differs)", fix=anew)
    problem = _wrong_field(record)
    if problem:
        raise ArtifactError(f"{path / MANIFEST} is damaged: {problem}", fix=anew)
    return Manifest(**record)


def file_of(path: Path, manifest: Manifest, name: str) -> Path:
    """The place of a listed file; ArtifactError when it is not listed, not there, no plain file, or a link out of the
    folder."""
    anew = f"make the {manifest.kind} again"
    if name not in manifest.files:
        raise ArtifactError(f"{manifest.kind} {path} lists no file {name}", fix=anew)
    place = path / name
    if not place.is_file():
        raise ArtifactError(f"{manifest.kind} {path} lacks its file {name}", fix=anew)
    if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path)):
        raise ArtifactError(f"{place} is a link to a place outside its folder", fix="put the file itself there")
    return place


def kind_at(path: str | Path) -> str | None:
    """What kind of artifact the folder says it holds, unchecked; ArtifactError when its manifest cannot be read."""
    manifest = Path(path) / MANIFEST
    try:
        record = read_json(manifest, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):
        raise ArtifactError(f"{manifest} is damaged", fix="make it again, or move it away") from None
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None


def verify(path: str | Path, kind: str) -> Manifest:
    """Like :func:`read_manifest`, and every file is there with the digest that the manifest names."""
    path = Path(path)
    manifest = read_manifest(path, kind)
    for name, expected in manifest.files.items():
        file = file_of(path, manifest, name)
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
    """Write tensors of any dtype and size as ``prefix-00000.safetensors`` ... of at most SHARD_BYTES each.

    A tensor too large for one file is cut along its flattened length: "NAME#0", "NAME#1", ... and "NAME#shape".
    """
    shard: dict[str, Tensor] = {}
    used = number = 0
    for name, tensor in tensors.items():
        for part_name, part in _parts(name, tensor.detach()):
            needed = part.nbytes + _entry_bytes(part_name)
            if shard and used + needed > SHARD_BYTES - HEADER_BYTES:
                write_tensors(shard, folder / f"{prefix}-{number:05d}.safetensors")
                shard, used, number = {}, 0, number + 1
            shard[part_name] = part
            used += needed
    write_tensors(shard, folder / f"{prefix}-{number:05d}.safetensors")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file; tensors of a multiple of ``ALIGNED`` bytes come first, so that all of these lie aligned.

    Trap: matrix products round differently at other addresses, and equal weights would give other scores. What does not
    lie aligned is copied when it is read.
    """
    parts = {name: tensor.detach().cpu().contiguous().reshape(-1) for name, tensor in tensors.items()}
    names = sorted(parts, key=lambda name: (parts[name].nbytes % ALIGNED > 0, -parts[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        begin, end = end, end + parts[name].nbytes
        header[name] = {
            "dtype": TENSOR_KINDS[parts[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            if parts[name].numel():
                file.write(parts[name].view(torch.uint8).numpy().data)


def check_replaceable(path: str | Path) -> None:
    """InputError unless ``path`` is free, empty, or an artifact that holds nothing but its own files."""
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is a file and would be replaced", fix="give the path of a new folder")
    try:
        record = parse_json(read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
        own = {*record["files"], MANIFEST}
    except ValueError:
        return  # an artifact whose manifest was cut off
    except (OSError, TypeError, KeyError):
        raise InputError(
            f"{str(path)!r} is no artifact of sidera's and would be replaced",
            allowed="a new or empty folder, or an older artifact",
            fix="give another path, or move the folder away",
        ) from None
    files = (file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file())
    foreign = [name for name in files if name not in own and not Path(name).name.startswith(".")]
    if foreign:
        raise InputError(
            f"{str(path)!r} would be replaced, and {foreign[0]!r} in it is not of its making", fix="move that file away"
        )


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    room = SHARD_BYTES - HEADER_BYTES - _entry_bytes(f"{name}#0000")
    if tensor.nbytes <= room and "#" not in name:
        yield name, tensor
        return
    yield f"{name}#shape", torch.tensor(tensor.shape, dtype=torch.int64)
    for index, part in enumerate(tensor.reshape(-1).split(max(1, room // tensor.element_size()))):
        yield f"{name}#{index}", part


def _entry_bytes(name: str) -> int:
    """What a tensor takes of its file's header, at most."""
    return 2 * len(name.encode()) + 160


def _wrong_field(record: Mapping[str, Any]) -> str:
    """What is wrong with the fields of a manifest; "" when nothing is."""
    for name in record:
        if name not in FIELDS:
            return f"it has an unknown field {shown(name)}"
    for name, kind in FIELDS.items():
        if name not in record:
            return f"it has no {name}"
        if not isinstance(record[name], kind):
            return f"{name} = {shown(record[name])} is no {kind.__name__}"
    for name, parent in record["parents"].items():
        if not isinstance(parent, str):
            return f"parent {name} = {shown(parent)} is no digest"
    for name, digest in record["files"].items():
        if not is_plain_name(name):
            return f"the file name {shown(name)} is not allowed"
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            return f"the digest {shown(digest)} of file {shown(name)} is none"
    return ""


def is_plain_name(name: str) -> bool:
    """True for a relative path with forward slashes that stays inside its folder, on every system."""
    parts = name.split("/")
    good = all(part and not RESERVED.fullmatch(part) for part in parts)  # "." and ".." end in a dot
    odd = not name.isprintable() or any(character in '\\:*?"<>|' for character in name)
    return good and not odd and name != MANIFEST and len(name) <= 1000


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
