"""The files of a published set: paths, folders, zip and tar archives are looked into, ``.gz`` is opened on the way.

Nothing is unpacked to the disk. A member is found by its base name, whatever folder of the archive it lies in.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sidera.core import InputError

NO_DATA = ("fetch.lock.json", "*.part", "*.part.json")  # what `sidera fetch` keeps beside the files
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, RuntimeError)


@dataclass(frozen=True)
class RawFile:
    """One file of the set; ``name`` is its base name without ``.gz``, ``label`` says where it lies."""

    name: str
    label: str
    opener: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, unpacked; InputError where the archive is cut short or damaged."""
        try:
            with self.opener() as stream:
                yield stream
        except InputError:  # a kind of ValueError: the reader's own complaint
            raise
        except FileNotFoundError:
            raise InputError(f"no file at {self.label!r}", fix="check the path") from None
        except DAMAGED as error:
            reason = str(error).splitlines()[0] if str(error) else "unexpected end"
            raise InputError(f"{self.label} is cut short or damaged: {reason}", fix="fetch the file again") from None


class RawFiles:
    """All files that the given paths hold."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.files: list[RawFile] = []
        for path in map(Path, paths):
            if path.is_dir():
                inner = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
                for file in inner:
                    if not any(fnmatch.fnmatchcase(file.name, pattern) for pattern in NO_DATA):
                        self.files += _members(file)
            elif path.is_file():
                self.files += _members(path)
            else:
                raise InputError(f"no file at {str(path)!r}", fix="check the path, or get it with `sidera fetch`")

    def find(self, *patterns: str) -> list[RawFile]:
        """Files whose name matches one of the patterns, in the order of the patterns."""
        matches: dict[str, RawFile] = {}
        for pattern in patterns:
            for file in self.files:
                if fnmatch.fnmatchcase(file.name.lower(), pattern.lower()):
                    matches.setdefault(file.label, file)
        return list(matches.values())

    def one(self, what: str, *patterns: str) -> RawFile:
        """The only such file; InputError when there is none, or more than one to choose from."""
        matches = self.find(*patterns)
        if not matches:
            raise InputError(f"no {what} among the files ({self.listed()})", allowed=" or ".join(patterns))
        if len(matches) > 1:
            names = ", ".join(file.label for file in matches[:4])
            raise InputError(f"{len(matches)} files may be the {what}: {names}", fix="name the one that is meant")
        return matches[0]

    def optional(self, what: str, *patterns: str) -> RawFile | None:
        return self.one(what, *patterns) if self.find(*patterns) else None

    def listed(self) -> str:
        return ", ".join(file.label for file in self.files[:6]) + (", ..." if len(self.files) > 6 else "") or "nothing"


def _members(path: Path) -> list[RawFile]:
    """The file itself, or what the archive holds."""
    lower = path.name.lower()
    if not lower.endswith(ARCHIVES):
        return [_plain(path)]
    try:
        if lower.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            return [_of_zip(path, name) for name in names if not _hidden(name)]
        with tarfile.open(path) as tar:
            names = [entry.name for entry in tar if entry.isfile()]
        return [_of_tar(path, name) for name in names if not _hidden(name)]
    except DAMAGED as error:
        raise InputError(f"{path} is cut short or damaged: {error}", fix="fetch the file again") from None


def _hidden(member: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in member.split("/") if part not in (".", ".."))


def _plain(path: Path) -> RawFile:
    @contextlib.contextmanager
    def opener() -> Iterator[IO[bytes]]:
        with path.open("rb") as stream:
            yield _unpacked(stream, path.name)

    return RawFile(_base(path.name), str(path), opener)


def _of_zip(path: Path, member: str) -> RawFile:
    @contextlib.contextmanager
    def opener() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield _unpacked(stream, member)

    return RawFile(_base(member), f"{path}:{member}", opener)


def _of_tar(path: Path, member: str) -> RawFile:
    @contextlib.contextmanager
    def opener() -> Iterator[IO[bytes]]:
        with tarfile.open(path) as archive:
            stream = archive.extractfile(member)
            assert stream is not None  # only plain files are listed
            with stream:
                yield _unpacked(stream, member)

    return RawFile(_base(member), f"{path}:{member}", opener)


def _unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if name.lower().endswith(".gz") else stream


def _base(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return base[:-3] if base.lower().endswith(".gz") else base
