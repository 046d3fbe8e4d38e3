"""The folder of a store: what it is, which files must be in it, and how new its database must be.

``store.json`` says kind, format and files. It is written last when a store is made: from then on a missing file is a
loss. ``commits`` holds the number of the last commit that was acknowledged.

Trap: ``commits`` is written after the commit and is not synced. So after a power cut it may be behind the database and
never ahead of it, except with ``durability="kernel"``, where the database itself may have lost its last commits. These
are counted, and only after the machine was started again.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidera import artifacts
from sidera.bounds import read_json, shown
from sidera.core import ArtifactError, InputError
from sidera.disk import sync

Durability = Literal["disk", "kernel"]
DURABILITIES = ("disk", "kernel")  # survives a power cut · survives the end of the process
MANIFEST, DATA, COMMITS, LOCK = "store.json", "data.db", "commits", "LOCK"
OURS = (DATA, COMMITS, LOCK, f"{DATA}-wal", f"{DATA}-shm", f"{DATA}-journal")
_LAST = struct.Struct("<QQI")  # commit, boot, checksum of both


@dataclass(frozen=True)
class Plan:
    """What a store's database holds."""

    kind: str
    format: int
    tables: str  # statements that make them
    older: str  # what to do with a folder that an older version wrote
    page_cache: int = 16 << 10  # KiB of pages that a connection keeps


class StoreFolder:
    """A folder of ``plan``'s kind, made when there is none. InputError for another folder, ArtifactError for a damaged
    one."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._handle = -1
        path.mkdir(parents=True, exist_ok=True)
        self._check_kind()

    def check_files(self) -> None:
        """ArtifactError when one is missing. The caller holds the lock."""
        for name in (DATA, COMMITS):
            if (self.path / MANIFEST).exists() and not (self.path / name).exists():
                raise ArtifactError(f"{self.path / name} is missing", fix="restore the folder from a copy")

    def open(self, commit: int, durability: Durability) -> int:
        """The database's last commit is ``commit`` -> how many a power cut took. ArtifactError when the database must
        be newer. The caller holds the lock."""
        if not (self.path / MANIFEST).exists():
            if commit:
                raise ArtifactError(f"{self.path / MANIFEST} is missing", fix="restore the folder from a copy")
            self.make(commit)
        self._handle = os.open(self.path / COMMITS, os.O_RDWR | getattr(os, "O_BINARY", 0))
        lost = self._lost(commit, durability)
        self.note(commit)
        return lost

    def make(self, commit: int) -> None:
        """The files beside a new database, or one that is taken as it is."""
        (self.path / COMMITS).write_bytes(_last(commit))
        sync(self.path / COMMITS)
        written = {"kind": self.plan.kind, "format": self.plan.format, "files": [DATA, COMMITS]}
        artifacts.write_text(self.path / MANIFEST, json.dumps(written, indent=2) + "\n")

    def note(self, commit: int) -> None:
        """A commit is durable and will be acknowledged. The caller holds the lock."""
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, _last(commit))

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _lost(self, commit: int, durability: Durability) -> int:
        content = os.read(self._handle, _LAST.size + 1)
        if len(content) != _LAST.size or zlib.crc32(content[:-4]) != _LAST.unpack(content)[2]:
            raise ArtifactError(f"{self.path / COMMITS} is damaged", fix="restore the folder from a copy")
        last, boot, _ = _LAST.unpack(content)
        if last > commit and not (durability == "kernel" and boot != _boot()):
            raise ArtifactError(
                f"{self.path / DATA} lacks {last - commit:,} of {last:,} commits: {DATA}-wal is damaged or missing",
                fix="restore the folder from a copy",
            )
        return max(0, last - commit)

    def _check_kind(self) -> None:
        file = self.path / MANIFEST
        if not file.exists():
            others = sorted(path.name for path in self.path.iterdir() if path.name not in OURS)
            if others:
                raise InputError(f"{str(self.path)!r} holds {others[0]} and no {MANIFEST}", fix=self.plan.older)
            return
        try:
            manifest = read_json(file)
            kind, number = manifest.get("kind"), manifest["format"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{file} is damaged", fix="restore it from a copy") from None
        if kind != self.plan.kind or number != self.plan.format:
            raise InputError(
                f"{str(self.path)!r} is of format {shown(number)} and kind {shown(kind or 'unnamed')}",
                allowed=f"format {self.plan.format} of {self.plan.kind}",
                fix=self.plan.older if kind is None else "give the folder of another store",
            )


def _last(commit: int) -> bytes:
    front = struct.pack("<QQ", commit, _boot())
    return front + struct.pack("<I", zlib.crc32(front))


@functools.cache
def _boot() -> int:
    """Another number after the machine was started again; 0 where the system does not say."""
    try:
        return zlib.crc32(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        return 0
