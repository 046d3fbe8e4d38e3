"""Versions of a run side by side, and which of them answers.

    runs/shop/model, catalog, recipe.json      version 0: what `sidera run` made
    runs/shop/versions/3/model, catalog, ...   version 3: a run folder of its own, with `version.json`
    runs/shop/versions/history.jsonl           what was published, kept back or taken back, when and why
    runs/shop/current                          {"version": 3}; where there is none, version 0 answers

A version appears whole (its folder is renamed into place) and is never written again. ``current`` is one small file
that is replaced at once: whoever reads it sees the version before or the one after. ``sidera serve``, ``recommend`` and
``sidera.load`` open the current version. ``sidera run``, ``evaluate`` and ``align`` are about the folder they name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sidera import artifacts
from sidera.bounds import read_json
from sidera.core import ArtifactError, InputError
from sidera.disk import sync
from sidera.engine.run_folder import RUN_RECIPE

FOLDER, CURRENT, RECORD, HISTORY = "versions", "current", "version.json", "history.jsonl"
NUMBER_BYTES = 4096  # of the pointer, at most


@dataclass(frozen=True)
class Version:
    """What a version says of itself."""

    number: int
    model: str  # digest of the weights
    items: int
    made_of: int | None = None  # version that it was trained on from
    inputs: str = ""  # digest of all that made it
    seen_until: int | None = None  # it was trained on events before this second
    items_messages: int = 0  # changes of items (``engine.living``) that its catalogue holds already
    gate: Mapping[str, Any] = field(default_factory=dict)  # figures that it was published for
    created: int = 0  # unix second


def folder_of(run: str | Path, number: int) -> Path:
    """The run folder of a version."""
    return Path(run) if number == 0 else Path(run) / FOLDER / str(number)


def current_number(run: str | Path) -> int:
    """The version that answers; ArtifactError for a pointer that says none."""
    file = Path(run) / CURRENT
    try:
        number = read_json(file, NUMBER_BYTES)["version"]
        if type(number) is int and number >= 0:
            return number
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ArtifactError(f"{file} is damaged", fix=f"sidera rollback {run} N, with a number of `sidera versions {run}`")


def current_folder(run: str | Path) -> Path:
    """The run folder of the version that answers; ``run`` itself where it has one version."""
    return folder_of(run, current_number(run))


def numbers(run: str | Path) -> list[int]:
    """Every version of a run, oldest first."""
    names = [path.name for path in (Path(run) / FOLDER).glob("*") if path.is_dir()]
    first = [0] if (Path(run) / "model").is_dir() else []
    return [*first, *sorted(int(name) for name in names if name.isdecimal())]


def read_version(run: str | Path, number: int) -> Version:
    """ArtifactError when there is no such version, or it is damaged."""
    folder = folder_of(run, number)
    if number not in numbers(run):
        known = ", ".join(map(str, numbers(run))) or "none"
        raise InputError(f"{str(run)!r} has no version {number}", allowed=known)
    manifest = artifacts.read_manifest(folder / "model", "model")
    if number == 0:
        info = manifest.info
        seen = info.get("training", {}).get("seen_until")
        return Version(0, manifest.digest, int(info.get("num_items", 0)), seen_until=seen)
    try:
        return Version(**read_json(folder / RECORD))
    except (OSError, ValueError, TypeError):
        raise ArtifactError(f"{folder / RECORD} is damaged", fix="roll back to another version") from None


def make_current(run: str | Path, number: int, why: str) -> None:
    """Let a version answer, from the next look at the pointer on; InputError, with the old one current, when it is not
    whole."""
    folder = folder_of(run, number)
    read_version(run, number)
    for kind in ("model", "catalog"):
        artifacts.verify(folder / kind, kind)
    artifacts.write_text(Path(run) / CURRENT, json.dumps({"version": number}) + "\n")
    sync(Path(run))
    note(run, "current", number, why)


@contextmanager
def adding(run: str | Path, number: int) -> Iterator[Path]:
    """Yield an empty folder; without an error it becomes version ``number``, whole and on the disk."""
    place = folder_of(run, number)
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(".new-*"):  # of a process that was killed: whoever adds holds the run
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for inner in (*sorted(staging.rglob("*")), staging):
            sync(inner)
        if place.exists():
            raise InputError(f"version {number} of {str(run)!r} is there already", fix="give the command again")
        os.replace(staging, place)
        sync(place.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_record(folder: Path, version: Version) -> None:
    artifacts.write_text(folder / RECORD, json.dumps(asdict(version), indent=1) + "\n")


def next_number(run: str | Path) -> int:
    return max([0, *numbers(run)]) + 1


def add_run(run: str | Path, other: str | Path) -> int:
    """Copy another run folder, such as a model trained again with other codes, as a version; -> its number."""
    other = current_folder(other)
    manifest = artifacts.verify(other / "model", "model")
    artifacts.verify(other / "catalog", "catalog")
    number = next_number(run)
    with adding(run, number) as folder:
        for part in ("model", "catalog", "reward"):
            if (other / part).is_dir():
                shutil.copytree(other / part, folder / part)
        shutil.copyfile(other / RUN_RECIPE, folder / RUN_RECIPE)
        info = manifest.info
        write_record(
            folder,
            Version(
                number, manifest.digest, int(info["num_items"]), inputs=manifest.digest,
                seen_until=info.get("training", {}).get("seen_until"), created=int(time.time()),
            ),
        )  # fmt: skip
    note(run, "added", number, f"a copy of {other}")
    return number


def note(run: str | Path, what: str, number: int, why: str, **more: Any) -> None:
    """One line of history; a line that a crash cut off is left where it is and read over."""
    file = Path(run) / FOLDER / HISTORY
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": int(time.time()), "what": what, "version": number, "why": why, **more})
    with file.open("a+", encoding="utf-8") as out:
        whole = out.tell() == 0 or _ends_line(file)
        out.write(("" if whole else "\n") + line + "\n")
        out.flush()
        os.fsync(out.fileno())


def history(run: str | Path) -> list[dict[str, Any]]:
    """What happened, oldest first."""
    file = Path(run) / FOLDER / HISTORY
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        found.append(record)
    return found


def _ends_line(file: Path) -> bool:
    with file.open("rb") as inner:
        inner.seek(-1, os.SEEK_END)
        return inner.read(1) == b"\n"
