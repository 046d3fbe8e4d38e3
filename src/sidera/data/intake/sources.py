"""Which files an import reads: one, several, those of a folder or of a pattern; and what kind each is.

A folder is read as tools for large data write one: files that begin with "_" or "." are no data (``_SUCCESS``), and
folders ``name=value`` inside it give their files a column. Links to folders are not followed, so a loop ends at once.

**Swelling.** A file of some megabytes may hold gigabytes (gzip, runs of equal values in Parquet). What a file swells
to is counted before or while it is read; more than ``SWELL`` times its size and more than ``FREE_BYTES`` is refused
unless ``--max-bytes`` says how much is meant.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sidera.core import InputError

SWELL = 100  # times its own size that a file may swell to: text compresses 3 to 20 times, logs of few kinds 50
FREE_BYTES = 256 << 20  # that every file may swell to
ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".inter": "csv",
    ".item": "csv",
    ".user": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".pq": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst"}
FOREIGN = {b"PK\x03\x04": "a zip or Excel file", b"\x89HDF": "an HDF5 file", b"SQLite": "an SQLite file"}


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    kind: str  # parquet, csv, jsonl
    compression: str = ""  # an entry of COMPRESSED
    given: dict[str, str] = field(default_factory=dict)  # columns that the folders around the file name
    max_bytes: int | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def budget(self) -> int:
        """Bytes that the file may swell to."""
        return self.max_bytes or max(FREE_BYTES, SWELL * self.path.stat().st_size)

    def swollen(self, what: str) -> InputError:
        size = self.path.stat().st_size
        return InputError(
            f"{self.path} of {size:,} bytes swells to {what}",
            allowed=f"{self.budget:,} bytes",
            fix="pass --max-bytes with the number of bytes that you expect, if the file is meant so",
        )


def find_sources(
    paths: Sequence[str | Path], file_format: str = "", max_bytes: int | None = None, what: str = "log"
) -> list[Source]:
    """The files behind paths, folders and patterns, in order; InputError when there is none or kinds are mixed."""
    sources: list[Source] = []
    for path in map(Path, paths):
        if path.is_dir():
            sources += _of_folder(path, file_format, max_bytes)
        elif not path.exists() and glob.has_magic(str(path)):
            matches = sorted(glob.glob(str(path)))
            if not matches:
                raise InputError(f"no file matches {str(path)!r}", fix="check the pattern")
            sources += find_sources(matches, file_format, max_bytes, what)
        else:
            check_file(path)
            sources.append(_source(path, file_format, max_bytes))
    seen: dict[Path, Path] = {}
    for source in sources:
        real = source.path.resolve()
        if real in seen:
            raise InputError(f"{source.path} is given twice, its events would count twice", fix="give every file once")
        seen[real] = source.path
    kinds = sorted({source.kind for source in sources})
    if len(kinds) > 1:
        raise InputError(f"the {what} has files of several kinds ({', '.join(kinds)})", fix="give files of one kind")
    return sources


def check_file(path: Path) -> None:
    """InputError unless a plain file is there."""
    if path.is_file():
        return
    if path.is_symlink():
        raise InputError(f"{path} is a link that leads nowhere or in a circle", allowed="a file or a folder")
    if path.exists():
        raise InputError(f"{path} is no plain file (a pipe or a device)", fix="write its content to a file first")
    folder = next(parent for parent in path.parents if parent.exists())
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"no file at {str(path)!r}{hint}", allowed=f"{folder} holds {', '.join(names[:6]) or 'nothing'}")


def _of_folder(folder: Path, file_format: str, max_bytes: int | None) -> list[Source]:
    sources = []
    for inner, folders, files in os.walk(folder):  # does not follow links to folders
        folders[:] = sorted(name for name in folders if not name.startswith(("_", ".")))
        parts = Path(inner).relative_to(folder).parts
        given = dict(part.split("=", 1) for part in parts if "=" in part)
        for name in sorted(files):
            path = Path(inner) / name
            if name.startswith(("_", ".")) or not path.is_file():
                continue
            if not file_format and _kind(path)[0] not in ENDINGS:
                continue
            sources.append(_source(path, file_format, max_bytes, given))
    if not sources:
        names = sorted(path.name for path in folder.iterdir())[:6]
        raise InputError(
            f"the folder {folder} holds no file that can be read ({', '.join(names) or 'nothing'})",
            allowed=f"files that end in {', '.join(ENDINGS)}",
        )
    return sources


def _source(path: Path, file_format: str, max_bytes: int | None, given: dict[str, str] | None = None) -> Source:
    ending, compression = _kind(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", fix="check its permissions") from None
    kind = {"json": "jsonl"}.get(file_format, file_format) or ENDINGS.get(ending, "")
    if start[:4] == b"PAR1":
        kind = file_format or "parquet"
    for magic, name in FOREIGN.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {name}", fix="write it as CSV, JSON Lines or Parquet first")
    if kind == "parquet":
        compression = ""
    elif not compression:  # by the first bytes: what downloads call .csv may be packed
        compression = next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")
    if not kind:
        raise InputError(
            f"{path} has the unknown ending {ending!r}",
            allowed=f"{', '.join(ENDINGS)}, text also with {', '.join(COMPRESSED)}",
            fix="say what it is: --format csv, jsonl or parquet",
        )
    return Source(path, kind, compression, given or {}, max_bytes)


def _kind(path: Path) -> tuple[str, str]:
    """-> (ending, compression) by the name alone."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return (suffixes[-2] if len(suffixes) > 1 else "", suffixes[-1])
    return (suffixes[-1] if suffixes else ""), ""
