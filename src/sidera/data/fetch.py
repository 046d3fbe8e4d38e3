"""``sidera fetch NAME``: the raw files of a published set, from the publisher or from a mirror, with their digests.

No digest is known before a file was had, so it is pinned at the first download: ``fetch.lock.json`` beside the files
keeps address, bytes, sha256 and date of each. What is fetched later must equal it, wherever it comes from. Keep the
lock with your project (``--lock FILE``), and everyone who fetches by it gets the same bytes or an error.
"""

from __future__ import annotations

import datetime
import json
import shutil
import urllib.parse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.core import InputError
from sidera.data.download import PATIENT, SPARE, Patience, Unwanted, check_address, download, part_of, sha256
from sidera.data.published import CATALOGUE, Published, published

LOCK = "fetch.lock.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Pin:
    """What a file was when it was first fetched."""

    url: str
    bytes: int
    sha256: str
    date: str  # ISO, UTC


def fetch(
    name: str,
    out: str | Path,
    *,
    accept: Callable[[Published], bool],
    source: str = "",
    lock: str | Path = "",
    repin: bool = False,
    say: Say = print,
    patience: Patience = PATIENT,
) -> list[Path]:
    """Files of the set ``name`` in the folder ``out``; those that are there and equal their pin stay.

    ``accept`` is asked once, before anything is fetched. ``source``: a folder or an address that holds the same file
    names, in place of the publisher's. ``repin``: a file that differs from its pin takes the pin's place.
    """
    release = published(name)
    out = Path(out)
    say(describe(release))
    if not release.files:
        raise InputError(
            f"{name} cannot be fetched without an account",
            fix=f"{release.by_hand} ({release.page}); then {convert_command(release, out)}",
        )
    if not accept(release):
        raise InputError(f"the terms of {name} were not accepted", fix="read them, and pass --accept-licence")
    lock_path = Path(lock) if lock else out / LOCK
    pins = read_lock(lock_path)
    paths = []
    for url in release.files:
        path = out / _base(url)
        address = _address(url, source)
        pin = pins.get(path.name)
        if not _is_here(path, pin, repin, say):
            _bring(address, path, say, patience, None if repin else pin, lock_path)
        pins[path.name] = Pin(address, path.stat().st_size, sha256(path), _today()) if pin is None or repin else pin
        write_lock(lock_path, pins)
        say(f"{path}: {path.stat().st_size:,} bytes, sha256 {pins[path.name].sha256[:16]}..., pinned in {lock_path}")
        paths.append(path)
    return paths


def describe(release: Published) -> str:
    files = "".join(f"\n  file     {url}" for url in release.files) or f"\n  by hand  {release.by_hand}"
    return f"{release.name}: {release.about}\n  page     {release.page}\n  licence  {release.terms}{files}"


def listing() -> str:
    """Every set, a line each."""
    width = max(map(len, CATALOGUE))
    return "\n".join(
        f"{name:<{width}}  {release.about}{'' if release.files else ' (by hand)'}"
        for name, release in CATALOGUE.items()
    )


def convert_command(release: Published, out: str | Path) -> str:
    return f"`sidera convert {release.raw_format} {out} --out data/{release.name}`"


def read_lock(path: Path) -> dict[str, Pin]:
    """Pins by file name; none where there is no lock yet."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Pin(**entry) for name, entry in record["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is no lock of fetched files", fix="move it away, or name another with --lock"
        ) from None


def write_lock(path: Path, pins: dict[str, Pin]) -> None:
    files: dict[str, Any] = {name: asdict(pin) for name, pin in sorted(pins.items())}
    write_text(path, json.dumps({"files": files}, indent=2) + "\n")


def _address(url: str, source: str) -> str:
    if not source:
        return url
    if "://" in source:
        check_address(source)
        return source if _base(source) == _base(url) else f"{source.rstrip('/')}/{_base(url)}"
    return str(Path(source) / _base(url)) if Path(source).is_dir() else source


def _bring(address: str, path: Path, say: Say, patience: Patience, pin: Pin | None, lock: Path) -> None:
    def accept(part: Path) -> None:
        _check_digest(part, path, pin, lock)

    if "://" in address:
        download(address, path, say, patience, accept)
        return
    origin = Path(address)
    if not origin.is_file():
        raise InputError(f"no file at {address!r}", fix="give --from the folder that holds it")
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if origin.stat().st_size + SPARE > free:
        raise InputError(f"{origin.name} needs {origin.stat().st_size:,} bytes, {free:,} are free", fix="free space")
    say(f"{origin.name}: copied from {origin.parent}")
    part = part_of(path)
    try:
        shutil.copyfile(origin, part)
        accept(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_here(path: Path, pin: Pin | None, repin: bool, say: Say) -> bool:
    """The file of an earlier call, whole; one that nobody pinned is taken for what it is and pinned now."""
    if not path.is_file() or repin:
        return False
    if pin is None or (path.stat().st_size == pin.bytes and sha256(path) == pin.sha256):
        say(f"{path.name}: already there")
        return True
    say(f"{path.name}: is not what was pinned on {pin.date}, fetched again")
    return False


def _check_digest(part: Path, path: Path, pin: Pin | None, lock: Path) -> None:
    if pin is None:
        return
    size, digest = part.stat().st_size, sha256(part)
    if digest != pin.sha256:
        raise Unwanted(
            f"{path.name} is not the file that {lock} pins: sha256 {digest[:16]}..., {size:,} bytes came; pinned on"
            f" {pin.date} from {pin.url} was {pin.sha256[:16]}..., {pin.bytes:,} bytes",
            fix="ask the publisher what changed, give a mirror with --from, or take the new file with --repin",
        )


def _base(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
